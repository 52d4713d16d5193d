// The tumour's area in each slice of a volume, as bars; a click or a drag goes to the slice.

class Chart {
  /** @param canvas Where it is drawn. @param go Called with the number of a slice, from 0. */
  constructor(canvas, go) {
    this.canvas = canvas;
    this.areas = [];
    this.at = 0;
    const chosen = (event) => {
      const box = canvas.getBoundingClientRect();
      const place = Math.floor((event.clientX - box.left) / box.width * this.areas.length);
      go(Math.min(this.areas.length - 1, Math.max(0, place)));
    };
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      chosen(event);
    });
    canvas.addEventListener("pointermove", (event) => { if (event.buttons) chosen(event); });
    new ResizeObserver(() => this.draw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  show(areas, at) {
    this.areas = areas;
    this.at = at;
    this.draw();
  }

  draw() {
    const { canvas, areas } = this, density = devicePixelRatio || 1;
    const width = canvas.width = Math.round(canvas.clientWidth * density);
    const height = canvas.height = Math.round(canvas.clientHeight * density);
    if (!width || !areas.length) return;
    const style = getComputedStyle(canvas), colour = (name) => style.getPropertyValue(name);
    const pen = canvas.getContext("2d"), most = Math.max(1, ...areas), each = width / areas.length;
    const gap = each > 4 * density ? density : 0;
    areas.forEach((area, n) => {
      const left = Math.round(n * each);
      const right = Math.max(left + 1, Math.round((n + 1) * each) - gap);
      if (n === this.at) {
        pen.fillStyle = colour("--here");
        pen.fillRect(left, 0, right - left, height);
      }
      // A stump shows that there is a slice, and a bar of two pixels that there is a tumour.
      const tall = area ? Math.max(3 * density, area / most * (height - 2 * density)) : density;
      pen.fillStyle = colour(area ? (n === this.at ? "--tumour" : "--bar") : "--line");
      pen.fillRect(left, height - tall, right - left, tall);
    });
  }
}
