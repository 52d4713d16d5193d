// The page: what the studies, the viewer and the controls tell each other.

const byId = (id) => document.getElementById(id);
const OWN_THRESHOLD = Number(document.body.dataset.threshold), OWN_LEVEL = levelOf(OWN_THRESHOLD);
const MOST_AT_HAND = 100e6;  // pixels of fetched slices, five bytes each

const atHand = new Map();  // slices that were fetched, the longest unused one first
let current = null;  // the entry that is looked at
let threshold = OWN_THRESHOLD;
let turn = 0;  // which slice was asked for last
const opacities = { fill: 0.45, outline: 1 };  // each as it was left

const viewer = new Viewer([byId("plain"), byId("painted")], {
  zoomed: (zoom) => {
    byId("zoom").textContent = Math.round(100 * zoom) + "%";
    byId("out").disabled = zoom <= 1;
    byId("in").disabled = zoom >= MOST_ZOOM;
  },
  pointed: (pixel) => {
    byId("reading").textContent = pixel
      ? `x ${pixel.x}, y ${pixel.y}: probability ${(pixel.level / 255).toFixed(2)}` : "";
  },
  scrolled: (step) => goTo(current ? current.at + step : 0),
});
const chart = new Chart(byId("chart"), (number) => goTo(number));
const studies = new Studies(byId("studies"), Number(document.body.dataset.most), {
  done: (entry) => {
    entry.measured(levelOf(threshold));
    say(`${entry.name}: ${entry.state.textContent}.`);
    if (!current || current === entry || entry.first) open(entry);
    entry.first = false;
  },
  failed: (entry) => { if (entry === current) show(); },
  opened: open,
  removed: (entry, next) => {
    if (entry === current) open(next);
    (next ? next.open : byId("file")).focus();
  },
});

const say = (text) => { byId("said").textContent = text; };

function open(entry) {
  current = entry;
  for (const other of studies.entries) {
    if (other === entry) other.open.setAttribute("aria-current", "true");
    else other.open.removeAttribute("aria-current");
  }
  byId("viewer").hidden = byId("panel").hidden = !entry;
  document.body.classList.toggle("empty", !entry);
  byId("taken").textContent = "";
  if (!entry) {
    viewer.clear();
    return;
  }
  const { study } = entry, several = study.slices.length > 1;
  byId("scroller").hidden = byId("volume-row").hidden = !several;
  byId("slice").max = study.slices.length;
  byId("get-seg").hidden = study.kind !== "dicom";
  byId("get-nifti").hidden = study.kind === "picture";
  byId("get-mask").textContent = several ? "Mask PNG of this slice" : "Mask PNG";
  byId("area-name").textContent = several ? "Tumour area, this slice" : "Tumour area";
  viewer.clear();
  goTo(entry.at).then(() => viewer.fit());
}

/** Goes to a slice of the current study: its figures are here, its image comes. */
async function goTo(number) {
  if (!current) return;
  const entry = current, last = entry.study.slices.length - 1, mine = ++turn;
  const before = entry.at;
  entry.at = Math.min(last, Math.max(0, number));
  show();
  byId("stage").setAttribute("aria-busy", "true");
  try {
    const slice = await sliceOf(entry, entry.at);
    if (mine !== turn) return;
    byId("trouble").hidden = true;
    viewer.show(slice, entry.study.spacing);
  } catch (error) {
    if (mine === turn) trouble(entry, error);
    return;
  } finally {
    if (mine === turn) byId("stage").setAttribute("aria-busy", "false");
  }
  const ahead = entry.at + (entry.at < before ? -1 : 1);
  // Whatever is wrong with it will be said when it is wanted.
  if (ahead >= 0 && ahead <= last) sliceOf(entry, ahead).catch(() => null);
}

/** Fetches a slice, unless it is at hand; the longest unused ones make room. */
function sliceOf({ study }, number) {
  const key = `${study.id}/${number}`, { width, height } = study.slices[number];
  const { slice } = atHand.get(key) || { slice: fetchSlice(study, number) };
  slice.catch(() => atHand.delete(key));
  atHand.delete(key);
  atHand.set(key, { slice, pixels: width * height });
  let pixels = [...atHand.values()].reduce((sum, one) => sum + one.pixels, 0);
  for (const [oldest, one] of atHand) {
    if (pixels <= MOST_AT_HAND || oldest === key) break;
    atHand.delete(oldest);
    pixels -= one.pixels;
  }
  return slice;
}

function trouble(entry, error) {
  const sentence = error instanceof Failed ? error.message : BROKEN;
  if (!(error instanceof Failed)) console.error(error);
  if (error.gone) entry.fail(sentence, "Send again");
  byId("trouble").textContent = sentence;
  byId("trouble").hidden = false;
}

/** Shows the figures of the current slice at the current threshold. */
function show() {
  if (!current) return;
  const { study, at } = current, level = levelOf(threshold), slice = study.slices[at];
  const areas = study.slices.map((one) => areaAt(one, level)), area = areas[at];
  const share = (100 * area / (slice.width * slice.height)).toFixed(2) + "% of the slice";
  const confidence = confidenceAt(slice, level, OWN_LEVEL);
  byId("area").textContent = area ? asArea(area, study.spacing) : "none found";
  byId("area-more").textContent = !area ? "at this threshold"
    : study.spacing ? `${asPixels(area)}, ${share}` : share;
  byId("confidence").textContent = confidence === null ? "–" : confidence.toFixed(2);
  byId("size").textContent = `${slice.width} × ${slice.height} px`;
  byId("spacing").textContent = spacingOf(study);
  showVolume(study, areas, level);
  const place = `${at + 1} of ${areas.length}`;
  const found = area ? asArea(area, study.spacing) : "no tumour";
  byId("slice").value = at + 1;
  byId("slice").setAttribute("aria-valuetext", `${place}, ${found}`);
  byId("place").textContent = `${at + 1} / ${areas.length}`;
  byId("plain").setAttribute("aria-label", `Slice ${place} of ${current.name}`);
  byId("painted").setAttribute("aria-label", `Slice ${place} of ${current.name}, ${found} marked`);
  const warnings = slice.warnings.map((text) => element("li", { textContent: text }));
  byId("warnings").replaceChildren(...warnings);
  chart.show(areas, at);
  viewer.set({ level });
}

function spacingOf({ spacing, thickness, slices }) {
  if (!spacing) return "spacing of pixels not known";
  const fixed = (mm) => Number(mm.toFixed(2)), [down, across] = spacing;
  const pixels = `pixels of ${fixed(across)} × ${fixed(down)} mm`;
  return slices.length > 1 && thickness !== null
    ? `${pixels}, slices ${fixed(thickness)} mm apart` : pixels;
}

function showVolume(study, areas, level) {
  const volume = volumeAt(study, level), marked = areas.filter(Boolean).length;
  byId("volume").textContent = volume === null ? "–" : `${rounded(volume)} ml`;
  byId("volume-more").textContent = `in ${marked} of ${areas.length} slices`
    + (volume === null ? "; spacing not known" : "");
}

function setThreshold(value) {
  threshold = Math.min(0.99, Math.max(0.01, value));
  const level = levelOf(threshold), own = threshold === OWN_THRESHOLD;
  byId("threshold").value = threshold;
  byId("threshold-at").textContent = threshold.toFixed(2);
  byId("own").disabled = own;
  byId("threshold-note").textContent = own
    ? "The model’s own, for which its limits were measured."
    : "Not the model’s own: its measured limits do not hold here.";
  byId("at").textContent = `at ${threshold.toFixed(2)}`;
  byId("taken").textContent = "";
  for (const entry of studies.entries) entry.measured(level);
  show();
  const area = byId("area").textContent;
  const told = threshold.toFixed(2) + (area && `, area ${area}`);
  byId("threshold").setAttribute("aria-valuetext", told);
}

function setView(view) {
  document.querySelector(`[name=view][value=${view}]`).checked = true;
  byId("stage").classList.toggle("alone", view === "overlay");
}

function setPaint(paint) {
  document.querySelector(`[name=paint][value=${paint}]`).checked = true;
  byId("legend").lastChild.textContent =
    paint === "none" ? "Tumour hidden" : "Tumour marked";
  byId("legend").className = paint;
  byId("opacity").disabled = paint === "none";
  viewer.set({ paint });
  if (paint !== "none") setOpacity(opacities[paint]);
}

function setOpacity(opacity) {
  opacities[viewer.look.paint] = opacity;
  byId("opacity").value = opacity;
  byId("opacity-at").textContent = Math.round(100 * opacity) + "%";
  viewer.set({ opacity });
}

/** Downloads a file of the current study at the current threshold, named after what was chosen. */
async function take(path, ending, query = {}) {
  const entry = current, plain = entry.name.replace(/\.(nii\.gz|nii|[a-z]{3,5})$/i, "") || "scan";
  const name = `${plain}-${ending}`;
  byId("taken").textContent = `Preparing ${name}…`;
  try {
    const asked = new URLSearchParams({ ...query, threshold });
    const blob = await fetchBlob(`studies/${entry.study.id}/${path}?${asked}`);
    const link = element("a", { href: URL.createObjectURL(blob), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    byId("taken").textContent = `Saved as ${name}.`;
  } catch (error) {
    byId("taken").textContent = "";
    trouble(entry, error);
  }
}

function choose(files) {
  const chosen = [...files], [first] = studies.add(chosen);
  if (first) first.first = true;
  tellOfSeries(chosen);
}

/** Says how a series is sent, where its files may have been chosen one by one. */
async function tellOfSeries(files) {
  const marks = files.map((file) => file.slice(128, 132).text().catch(() => ""));
  const dicom = (await Promise.all(marks)).filter((mark) => mark === "DICM");
  byId("series").hidden = dicom.length < 2;
}

byId("file").addEventListener("change", (event) => {
  choose(event.target.files);
  event.target.value = "";  // so that choosing the same file again counts as a change
});
for (const name of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    byId("drop").classList.toggle("over", name === "dragenter" || name === "dragover");
    if (name === "drop") choose(event.dataTransfer.files);
  });
}

byId("slice").addEventListener("input", (event) => goTo(event.target.value - 1));
byId("threshold").addEventListener("input", (event) => setThreshold(Number(event.target.value)));
byId("own").addEventListener("click", () => setThreshold(OWN_THRESHOLD));
byId("opacity").addEventListener("input", (event) => setOpacity(Number(event.target.value)));
for (const choice of document.querySelectorAll("[name=view]")) {
  choice.addEventListener("change", () => setView(choice.value));
}
for (const choice of document.querySelectorAll("[name=paint]")) {
  choice.addEventListener("change", () => setPaint(choice.value));
}
byId("in").addEventListener("click", () => viewer.zoomBy(1.5));
byId("out").addEventListener("click", () => viewer.zoomBy(1 / 1.5));
byId("fit").addEventListener("click", () => viewer.fit());
byId("get-mask").addEventListener("click", () => {
  const number = String(current.at + 1).padStart(3, "0");
  const several = current.study.slices.length > 1;
  take("mask.png", several ? `slice-${number}-mask.png` : "mask.png", { slice: current.at });
});
byId("get-seg").addEventListener("click", () => take("seg.dcm", "seg.dcm"));
byId("get-nifti").addEventListener("click", () => take("mask.nii.gz", "mask.nii.gz"));

const step = (by) => () => goTo(current.at + by);
const KEYS = {
  ArrowLeft: step(-1), ArrowUp: step(-1), ArrowRight: step(1), ArrowDown: step(1),
  PageUp: step(-10), PageDown: step(10),
  Home: () => goTo(0), End: () => goTo(Infinity),
  "+": () => viewer.zoomBy(1.5), "=": () => viewer.zoomBy(1.5), "-": () => viewer.zoomBy(1 / 1.5),
  0: () => viewer.fit(),
  s: () => setView("pair"), o: () => setView("overlay"),
  f: () => setPaint("fill"), l: () => setPaint("outline"), h: () => setPaint("none"),
  "[": () => setThreshold(Math.round(100 * threshold - 1) / 100),
  "]": () => setThreshold(Math.round(100 * threshold + 1) / 100),
  n: () => open(studies.beside(current, 1)), p: () => open(studies.beside(current, -1)),
};
const MOVES = { ArrowLeft: [40, 0], ArrowRight: [-40, 0], ArrowUp: [0, 40], ArrowDown: [0, -40] };

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "?") {
    byId("help").open = !byId("help").open;
    if (byId("help").open) byId("help").scrollIntoView({ block: "nearest" });
    return;
  }
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const inField = event.target.matches("input") && event.key.length > 1;  // arrows are its own
  const act = event.shiftKey && MOVES[key] ? () => viewer.moveBy(...MOVES[key]) : KEYS[key];
  if (!current || !act || inField) return;
  // With one slice there is nothing to go to, so these keys stay the page's.
  const scrolls = event.key.length > 1 && !event.shiftKey && current.study.slices.length < 2;
  if (scrolls) return;
  event.preventDefault();
  act();
});

setView(innerWidth < 720 ? "overlay" : "pair");
setPaint("fill");
setThreshold(OWN_THRESHOLD);
