// The list of what was chosen: each file's progress, result, or what went wrong with it.

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

/** One file that was chosen, and its line in the list. */
class Entry {
  constructor(file, calls) {
    this.file = file;
    this.name = file.name;
    this.study = null;
    this.removal = new AbortController();
    this.at = 0;
    this.image = element("img", { alt: "", loading: "lazy" });
    this.state = element("span", { className: "state" });
    this.open = element("button", { type: "button", className: "open", disabled: true },
      element("span", { className: "thumb" }, this.image),
      element("span", { className: "what" },
        element("span", { className: "name", textContent: file.name, title: file.name }),
        this.state));
    this.bar = element("progress", { max: 1, hidden: true });
    this.bar.setAttribute("aria-label", `Progress of ${file.name}`);
    this.sentence = element("p", { className: "alarm", hidden: true });
    this.sentence.setAttribute("role", "alert");
    this.again = element("button", { type: "button", className: "plain", hidden: true });
    const remove = element("button", { type: "button", className: "remove", textContent: "×" });
    remove.setAttribute("aria-label", `Remove ${file.name}`);
    remove.title = "Remove, here and in the service";
    this.line = element("li", {}, this.open, remove, this.bar, this.sentence, this.again);
    this.open.addEventListener("click", () => calls.open(this));
    this.again.addEventListener("click", () => calls.again(this));
    remove.addEventListener("click", () => calls.remove(this));
    this.tell("Waiting");
  }

  tell(text, share) {
    this.state.textContent = text;
    this.bar.hidden = share === undefined;
    if (share === null) this.bar.removeAttribute("value");
    else if (share !== undefined) this.bar.value = share;
    this.sentence.hidden = this.again.hidden = true;
    this.line.classList.remove("failed");
  }

  /** Says why the service does not take it now. */
  wait(sentence, seconds) {
    this.tell(`Waiting, again in ${seconds} s`, null);
    this.sentence.textContent = sentence;
    this.sentence.hidden = false;
  }

  /** Says what went wrong, and offers to try again if `offer` says how; what was found stays. */
  fail(sentence, offer) {
    this.tell(this.study ? "No longer in the service" : "Not segmented");
    this.line.classList.add("failed");
    this.sentence.textContent = sentence;
    this.sentence.hidden = false;
    this.again.textContent = offer;
    this.again.hidden = !offer;
  }

  done(study) {
    this.study = study;
    const areas = study.slices.map((slice) => slice.area_px);
    const largest = areas.indexOf(Math.max(...areas));
    this.at = areas[largest] ? largest : Math.floor(areas.length / 2);
    this.image.src = `studies/${study.id}/${this.at}/image.png`;
    this.open.disabled = false;
  }

  /** Says in the list what was found at a level. */
  measured(level) {
    if (!this.study || this.line.classList.contains("failed")) return;
    const { slices, spacing } = this.study, volume = volumeAt(this.study, level);
    const areas = slices.map((slice) => areaAt(slice, level));
    const all = areas.reduce((sum, area) => sum + area, 0);
    const unlike = slices.some((slice) => slice.warnings.length);
    let text = all ? asArea(all, spacing) : "No tumour found";
    if (slices.length > 1) {
      const found = all ? (volume === null ? asPixels(all) : `${rounded(volume)} ml`) : text;
      text = `${slices.length} slices · ${found}`;
    }
    this.tell(unlike ? `${text} · warning` : text);
    this.line.classList.toggle("unlike", unlike);
  }
}

/** The list; it sends one file after the other, since the service computes so too. */
class Studies {
  /**
   * @param list The `ul`.
   * @param most The largest file, in bytes.
   * @param done Called with each entry that was segmented. @param failed With each that was not.
   * @param opened Called with the entry to look at.
   * @param removed Called with the entry that was removed, and the next one or null.
   */
  constructor(list, most, { done, failed, opened, removed }) {
    this.list = list;
    this.most = most;
    this.calls = { done, failed, opened, removed };
    this.entries = [];
    this.queue = [];
    this.running = false;
  }

  add(files) {
    const calls = {
      open: (entry) => this.calls.opened(entry),
      again: (entry) => this.send(entry),
      remove: (entry) => this.remove(entry),
    };
    const added = [...files].map((file) => new Entry(file, calls));
    this.entries.push(...added);
    this.list.append(...added.map((entry) => entry.line));
    added.forEach((entry) => this.send(entry));
    return added;
  }

  send(entry) {
    if (this.queue.includes(entry)) return;
    entry.tell("Waiting");
    this.queue.push(entry);
    this.work();
  }

  async work() {
    if (this.running) return;
    this.running = true;
    while (this.queue.length) {
      await this.one(this.queue[0]);
      this.queue.shift();
    }
    this.running = false;
  }

  async one(entry) {
    const progress = (share) => share < 1
      ? entry.tell(`Uploading, ${Math.floor(100 * share)}%`, share)
      : entry.tell("Segmenting…", null);
    const waiting = (sentence, seconds) => entry.wait(sentence, seconds);
    entry.tell("Uploading", 0);
    try {
      const { signal } = entry.removal;
      const study = await sendFile(entry.file, this.most, progress, waiting, signal);
      entry.tell("");
      entry.done(study);
      if (this.entries.includes(entry)) this.calls.done(entry);
      else forget(study);  // it was removed meanwhile
    } catch (error) {
      if (!this.entries.includes(entry)) return;
      const known = error instanceof Failed;
      if (!known) console.error(error);
      entry.fail(known ? error.message : BROKEN, !known || error.passing ? "Try again" : "");
      this.calls.failed(entry);
    }
  }

  remove(entry) {
    const place = this.entries.indexOf(entry);
    this.entries.splice(place, 1);
    this.queue = this.queue.filter((other, n) => n === 0 || other !== entry);
    entry.line.remove();
    entry.removal.abort();
    if (entry.study) forget(entry.study);
    const ready = this.entries.filter((other) => other.study);
    const next = ready.find((other) => this.entries.indexOf(other) >= place) || ready.at(-1);
    this.calls.removed(entry, next || null);
  }

  /** The entry that can be opened before or after one; itself at the ends. */
  beside(entry, step) {
    const ready = this.entries.filter((other) => other.study);
    return ready[Math.min(ready.length - 1, Math.max(0, ready.indexOf(entry) + step))];
  }
}
