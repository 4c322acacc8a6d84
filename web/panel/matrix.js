// A matrix of cosines as coloured cells.

/**
 * Draw cosines between prompts: nothing is 0, orange 1, blue -1. The diagonal is left out.
 * @param {HTMLCanvasElement} canvas square
 * @param {string[]} names
 * @param {number[][]} matrix
 * @returns {[string, string, string]} the two names that are most alike, and their cosine
 */
export function drawMatrix(canvas, names, matrix) {
  const side = canvas.clientWidth * (window.devicePixelRatio || 1);
  canvas.width = canvas.height = side;
  const pen = canvas.getContext("2d");
  const cell = side / names.length;
  let [first, second, largest] = [0, 0, -Infinity];
  matrix.forEach((line, row) => {
    line.forEach((cosine, column) => {
      if (row === column) return;
      if (cosine > largest) [first, second, largest] = [row, column, cosine];
      if (!pen) return;
      pen.fillStyle = cosine > 0 ? "#E69F00" : "#56B4E9";
      pen.globalAlpha = Math.min(1, Math.abs(cosine));
      pen.fillRect(column * cell, row * cell, Math.ceil(cell), Math.ceil(cell));
    });
  });
  return [names[first] ?? "", names[second] ?? "", Number.isFinite(largest) ? largest.toFixed(2) : ""];
}
