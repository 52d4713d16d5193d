// What is measured at any threshold, from each slice's histogram of probability levels (0 to 255).

/** The level from which a pixel is tumour: the same sum as in `render.level_of`. */
const levelOf = (threshold) => Math.max(1, Math.floor(255 * threshold + 0.5));

/** A slice's tumour in pixels. */
function areaAt(slice, level) {
  let area = 0;
  for (let at = level; at < slice.histogram.length; at++) area += slice.histogram[at];
  return area;
}

/** Mean probability inside the tumour; null where there is none. */
function confidenceAt(slice, level, ownLevel) {
  // At the model's own threshold the service knows it unrounded.
  if (level === ownLevel) return slice.confidence;
  let area = 0, sum = 0;
  for (let at = level; at < slice.histogram.length; at++) {
    area += slice.histogram[at];
    sum += at * slice.histogram[at];
  }
  return area ? sum / 255 / area : null;
}

/** A study's tumour in millilitres; null where spacing or distance of slices is not known. */
function volumeAt(study, level) {
  if (!study.spacing || study.thickness === null) return null;
  const pixels = study.slices.reduce((sum, slice) => sum + areaAt(slice, level), 0);
  return pixels * study.spacing[0] * study.spacing[1] * study.thickness / 1000;
}

const inFull = new Intl.NumberFormat("en-GB", { maximumFractionDigits: 0 });

/** Three digits or more, as many as say something. */
function rounded(value) {
  if (value === 0) return "0";
  return value >= 100 ? inFull.format(value) : value.toFixed(value >= 10 ? 1 : 2);
}

const asPixels = (area) => inFull.format(area) + " px";

/** An area in mm² where the spacing is known, in pixels otherwise. */
function asArea(area, spacing) {
  return spacing ? rounded(area * spacing[0] * spacing[1]) + " mm²" : asPixels(area);
}
