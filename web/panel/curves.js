// Loss curves on a canvas. Colours of Okabe and Ito: told apart by colour-blind readers too.
import { t } from "../words.js";

/** @typedef {{cycle: number[], loss: number[]}} Line */

const COLOURS = ["#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#F0E442", "#0072B2"];
const PAD = { left: 44, right: 8, top: 8, bottom: 20 };

const QUIET = "#8884";

/**
 * A colour for each line. Of more lines than can be told apart only the chosen one has a colour.
 * @param {string[]} names @param {string} chosen
 */
export function coloursOf(names, chosen) {
  const few = names.length <= COLOURS.length;
  return names.map((name, index) => (few ? COLOURS[index] : name === chosen ? COLOURS[0] : QUIET));
}

/**
 * Draw lines over cycles, logarithmic in the loss: thin as they are, thick their running mean.
 * @param {HTMLCanvasElement} canvas
 * @param {Record<string, Line>} lines
 * @param {number} cycles where the axis ends
 * @param {string[]} colours
 */
export function drawCurves(canvas, lines, cycles, colours) {
  const { clientWidth: width, clientHeight: height } = canvas;
  const ratio = window.devicePixelRatio || 1;
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  const pen = canvas.getContext("2d");
  if (!pen || !width) return;
  pen.scale(ratio, ratio);
  pen.clearRect(0, 0, width, height);
  const values = Object.values(lines).flatMap((line) => line.loss.filter((loss) => loss > 0 && Number.isFinite(loss)));
  if (!values.length) return;
  const low = Math.log10(values.reduce((a, b) => Math.min(a, b)));
  const high = Math.max(low + 0.3, Math.log10(values.reduce((a, b) => Math.max(a, b))));
  const x = (/** @type {number} */ cycle) => PAD.left + ((width - PAD.left - PAD.right) * cycle) / Math.max(1, cycles);
  const y = (/** @type {number} */ loss) => PAD.top + ((height - PAD.top - PAD.bottom) * (high - Math.log10(loss))) / (high - low);

  pen.font = "10px system-ui, sans-serif";
  pen.fillStyle = getComputedStyle(canvas).color;
  pen.strokeStyle = "#8885";
  pen.lineWidth = 1;
  for (let step = 0; step <= 3; step++) {
    const loss = 10 ** (low + ((high - low) * step) / 3);
    pen.beginPath();
    pen.moveTo(PAD.left, y(loss));
    pen.lineTo(width - PAD.right, y(loss));
    pen.stroke();
    pen.fillText(loss.toPrecision(2), 2, y(loss) + 3);
  }
  pen.fillText("0", PAD.left, height - 6);
  const end = t("{cycles} cycles", { cycles });
  pen.fillText(end, width - PAD.right - pen.measureText(end).width, height - 6);

  Object.values(lines).forEach((line, index) => {
    pen.strokeStyle = colours[index];
    for (const [lineWidth, alpha, over] of [[1, 0.35, 1], [2, 1, Math.max(5, Math.round(line.loss.length / 40))]]) {
      pen.lineWidth = lineWidth;
      pen.globalAlpha = alpha;
      pen.beginPath();
      mean(line.loss, over).forEach((loss, at) => {
        if (loss > 0 && Number.isFinite(loss)) pen.lineTo(x(line.cycle[at]), y(loss));
      });
      pen.stroke();
    }
    pen.globalAlpha = 1;
  });
}

/** Running mean over the last `over` values. @param {number[]} values @param {number} over */
export function mean(values, over) {
  /** @type {number[]} */
  const made = [];
  let sum = 0;
  values.forEach((value, at) => {
    sum += value;
    if (at >= over) sum -= values[at - over];
    made.push(sum / Math.min(at + 1, over));
  });
  return made;
}
