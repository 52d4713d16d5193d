// The way to the service and back; whatever goes wrong becomes a sentence for people.

/** What went wrong, as a sentence, with the status of the service's answer; 0 if there was none. */
class Failed extends Error {
  constructor(sentence, status = 0) {
    super(sentence);
    this.status = status;
  }

  /** Whether the service no longer has the study. */
  get gone() { return this.status === 404; }

  /** Whether the same file may be taken at another attempt. */
  get passing() { return this.status === 0 || this.status >= 500 || this.gone; }
}

const UNREACHABLE = "The service cannot be reached: check the connection and try again.";
const BROKEN = "The service failed at this: try again, and tell whoever runs it if it stays so.";
const BUSY = "The service is busy: try again in a few minutes.";
const UNREADABLE =
  "This cannot be read: it may be a folder, or was moved; choose it again as a file.";
const MOST_WAITS = 24;  // of 5 s each: as long as the service lets a volume take

/**
 * Repeats what the service was too busy for, when it says.
 * @param waiting Called with its sentence, and the seconds left.
 * @param signal Ends the waiting.
 */
async function patiently(attempt, waiting = () => {}, signal = null) {
  for (let turn = 1; ; turn++) {
    const answer = await attempt();
    if (answer.status !== 503) return answer;
    const busy = failure(answer.status, answer.text);
    if (turn > MOST_WAITS) throw busy;
    for (let left = Math.min(60, Math.max(1, answer.retryAfter || 5)); left > 0; left--) {
      waiting(busy.message, left);
      await new Promise((done) => setTimeout(done, 1000));
      signal?.throwIfAborted();
    }
  }
}

function failure(status, text) {
  try {
    const sentence = JSON.parse(text).error;
    if (typeof sentence === "string" && sentence) return new Failed(sentence, status);
  } catch {
    // No JSON: something between here and the service answered.
  }
  return new Failed(status === 503 ? BUSY : BROKEN, status);
}

function post(path, form, progress, signal) {
  return new Promise((done, fail) => {
    const request = new XMLHttpRequest();  // since `fetch` does not tell how much was sent
    request.upload.addEventListener("progress", (event) => {
      if (event.lengthComputable) progress(event.loaded / event.total);
    });
    const stop = () => request.abort();
    signal.addEventListener("abort", stop);
    request.upload.addEventListener("load", () => {
      // From here on the service has it, and only its answer tells by which name to forget it.
      signal.removeEventListener("abort", stop);
      progress(1);
    });
    request.addEventListener("abort", () => fail(signal.reason));
    request.addEventListener("load", () => done({
      status: request.status,
      retryAfter: Number(request.getResponseHeader("Retry-After")),
      text: request.responseText,
    }));
    request.addEventListener("error", () => fail(new Failed(UNREACHABLE)));
    request.open("POST", path);
    request.send(form);
  });
}

/**
 * Sends a file and returns the study.
 * @param progress Called with the share that was sent.
 * @param waiting Called with why the service does not take it now, and the seconds until the next
 *   attempt.
 * @param signal Ends the sending; what was sent as a whole is answered nevertheless.
 */
async function sendFile(file, most, progress, waiting, signal) {
  if (file.size > most) {
    throw new Failed(`The file is larger than ${most / 2 ** 20} MiB: send a smaller one.`, 413);
  }
  try {
    await file.slice(0, 1).arrayBuffer();
  } catch {
    throw new Failed(UNREADABLE, 400);
  }
  const form = new FormData();
  form.append("file", file, "scan");  // file names may name patients: they stay here
  signal.throwIfAborted();
  const attempt = () => post("studies", form, progress, signal);
  const answer = await patiently(attempt, waiting, signal);
  if (answer.status !== 200) throw failure(answer.status, answer.text);
  try {
    return JSON.parse(answer.text);
  } catch {
    throw new Failed(BROKEN);
  }
}

/** Fetches a file of the service's as a blob. */
async function fetchBlob(path) {
  const answer = await patiently(async () => {
    let response;
    try {
      response = await fetch(path);
      if (response.ok) return { status: response.status, blob: await response.blob() };
      return {
        status: response.status,
        retryAfter: Number(response.headers.get("Retry-After")),
        text: await response.text(),
      };
    } catch {
      throw new Failed(UNREACHABLE);
    }
  });
  if (!answer.blob) throw failure(answer.status, answer.text);
  return answer.blob;
}

/** Lets the service forget a study at once; if it cannot be reached, time does it. */
function forget(study) {
  fetch(`studies/${study.id}`, { method: "DELETE", keepalive: true }).catch(() => null);
}

// Exactly the file's values: no colour management, no alpha.
const AS_IS = { colorSpaceConversion: "none", premultiplyAlpha: "none" };

/** Fetches a slice: its image, and each pixel's level of probability. */
async function fetchSlice(study, number) {
  const at = `studies/${study.id}/${number}`;
  const both = [fetchBlob(`${at}/image.png`), fetchBlob(`${at}/probability.png`)];
  const blobs = await Promise.all(both);
  const [image, graded] = await Promise.all(blobs.map((blob) => createImageBitmap(blob, AS_IS)));
  const canvas = new OffscreenCanvas(graded.width, graded.height);
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.drawImage(graded, 0, 0);
  const { data } = pen.getImageData(0, 0, graded.width, graded.height);
  const levels = new Uint8Array(graded.width * graded.height);
  for (let at = 0; at < levels.length; at++) levels[at] = data[4 * at];
  graded.close();
  return { image, levels, width: image.width, height: image.height };
}
