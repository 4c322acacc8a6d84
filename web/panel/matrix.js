// A matrix of likenesses as coloured cells.
import { t } from "../words.js";

const LABELS = 90; // pixels for the names
const ROOM = 11; // a cell of fewer pixels has no room for a name beside it

/**
 * Draw values between names: nothing is 0, orange 1, blue -1. Where names have no room the pointer tells them.
 * @param {HTMLCanvasElement} canvas
 * @param {string[]} names
 * @param {(number[] | undefined)[]} matrix a row is missing where nothing is known yet
 * @param {boolean} diagonal whether what an effect has with itself is drawn
 */
export function drawMatrix(canvas, names, matrix, diagonal) {
  const ratio = window.devicePixelRatio || 1;
  const width = canvas.clientWidth;
  const named = (width - LABELS) / names.length >= ROOM;
  const edge = named ? LABELS : 0;
  const cell = (width - edge) / names.length;
  const rows = 1 + matrix.findLastIndex((line) => line);
  const height = edge + rows * cell; // no room for what comes later
  canvas.style.height = `${height}px`;
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  const pen = canvas.getContext("2d");
  if (!pen || !width) return;
  pen.scale(ratio, ratio);
  const { color, font } = getComputedStyle(canvas);
  pen.font = font;
  pen.textBaseline = "middle";
  pen.fillStyle = color;
  if (named) {
    names.forEach((name, at) => {
      if (at < rows) pen.fillText(name, 0, edge + (at + 0.5) * cell, LABELS - 6);
      pen.save();
      pen.translate(edge + (at + 0.5) * cell, edge - 6);
      pen.rotate(-Math.PI / 2);
      pen.fillText(name, 0, 0, LABELS - 6);
      pen.restore();
    });
  }
  matrix.forEach((line, row) => {
    line?.forEach((value, column) => {
      if (row === column && !diagonal) return;
      pen.fillStyle = value > 0 ? "#E69F00" : "#56B4E9";
      pen.globalAlpha = Math.min(1, Math.abs(value));
      pen.fillRect(edge + column * cell, edge + row * cell, Math.ceil(cell), Math.ceil(cell));
    });
  });
  canvas.onmousemove = ({ offsetX, offsetY }) => {
    const [row, column] = [offsetY, offsetX].map((at) => Math.floor((at - edge) / cell));
    const value = matrix[row]?.[column];
    const values = { row: names[row], column: names[column], value: value?.toFixed(2) ?? "" };
    canvas.title = value === undefined ? "" : t("{row} and {column}: {value}", values);
  };
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
 * The column that a row is nearest to; -1 where nothing is above 0.
 * @param {number[]} line
 */
export function nearestOf(line) {
  const largest = Math.max(...line);
  return largest > 0 ? line.indexOf(largest) : -1;
}
