// A matrix of likenesses as coloured cells.

const LABELS = 90; // pixels for the rows' names
const ROOM = 12; // a cell of fewer pixels has no room for a name beside it

/**
 * Draw values between names: nothing is 0, orange 1, blue -1.
 * @param {HTMLCanvasElement} canvas
 * @param {string[]} names
 * @param {number[][]} matrix
 * @param {boolean} diagonal whether what an effect has with itself is drawn
 */
export function drawMatrix(canvas, names, matrix, diagonal) {
  const ratio = window.devicePixelRatio || 1;
  const width = canvas.clientWidth;
  const named = (width - LABELS) / names.length >= ROOM;
  const left = named ? LABELS : 0;
  const cell = (width - left) / names.length;
  canvas.style.height = `${width - left}px`;
  canvas.width = width * ratio;
  canvas.height = (width - left) * ratio;
  const pen = canvas.getContext("2d");
  if (!pen || !width) return;
  pen.scale(ratio, ratio);
  const { color, font } = getComputedStyle(canvas);
  pen.font = font;
  pen.textBaseline = "middle";
  matrix.forEach((line, row) => {
    pen.globalAlpha = 1;
    pen.fillStyle = color;
    if (named) pen.fillText(names[row], 0, (row + 0.5) * cell, LABELS - 6);
    line.forEach((value, column) => {
      if (row === column && !diagonal) return;
      pen.fillStyle = value > 0 ? "#E69F00" : "#56B4E9";
      pen.globalAlpha = Math.min(1, Math.abs(value));
      pen.fillRect(left + column * cell, row * cell, Math.ceil(cell), Math.ceil(cell));
    });
  });
}

/**
 * The two names that are most alike, and their value.
 * @param {string[]} names @param {number[][]} matrix
 * @returns {[string, string, string]}
 */
export function mostAlike(names, matrix) {
  let [first, second, largest] = [0, 0, -Infinity];
  matrix.forEach((line, row) => {
    line.forEach((value, column) => {
      if (row !== column && value > largest) [first, second, largest] = [row, column, value];
    });
  });
  return [names[first] ?? "", names[second] ?? "", Number.isFinite(largest) ? largest.toFixed(2) : ""];
}

/**
 * For each row the column that it is nearest to; -1 where nothing is above 0.
 * @param {number[][]} matrix
 */
export function nearestOf(matrix) {
  return matrix.map((line) => {
    const largest = Math.max(...line);
    return largest > 0 ? line.indexOf(largest) : -1;
  });
}
