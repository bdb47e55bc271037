// Columns of numbers, as the page holds them: searched, smoothed, thinned for drawing. Nothing here touches the page.
"use strict";

// The first index whose value is not below x; values ascend.
function firstFrom(values, x) {
  let low = 0, high = values.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (values[middle] < x) low = middle + 1;
    else high = middle;
  }
  return low;
}

// The index of the value that is closest to x; -1 without values.
function nearest(values, x) {
  const after = firstFrom(values, x);
  if (after === 0) return values.length ? 0 : -1;
  if (after === values.length) return after - 1;
  return x - values[after - 1] <= values[after] - x ? after - 1 : after;
}

// An exponential mean in which the values so far count as if there had been some before; gaps stay gaps.
function smooth(values, weight) {
  if (!weight) return values;
  let mean = 0, sum = 0;
  return values.map((value) => {
    if (value === null) return null;
    mean = mean * weight + value * (1 - weight);
    sum = sum * weight + 1 - weight;
    return mean / sum;
  });
}

// At most the least and the greatest value of each of so many equal parts between low and high, as [xs, ys], with one
// point outside on each side, so that lines run on to the edges.
function thinned(xs, ys, low, high, parts) {
  const begin = Math.max(0, firstFrom(xs, low) - 1);
  const end = Math.min(xs.length, firstFrom(xs, high) + 1);
  if (end - begin <= 2 * parts) return [xs.slice(begin, end), ys.slice(begin, end)];
  const outX = [], outY = [], width = (high - low) / parts || 1;
  const put = (index) => { outX.push(xs[index]); outY.push(ys[index]); };
  for (let index = begin; index < end;) {
    const part = Math.floor((xs[index] - low) / width);
    let least = -1, most = -1, gap = index;
    for (; index < end && Math.floor((xs[index] - low) / width) === part; index++) {
      if (ys[index] === null) continue;
      if (least < 0 || ys[index] < ys[least]) least = index;
      if (most < 0 || ys[index] > ys[most]) most = index;
    }
    if (least < 0) put(gap);
    else {
      put(Math.min(least, most));
      if (least !== most) put(Math.max(least, most));
    }
  }
  return [outX, outY];
}

// 1234567 as 1.23M; small and large ones with so many digits.
function short(value, digits = 4) {
  if (value === null || value === undefined) return "-";
  const size = Math.abs(value);
  for (const [unit, scale] of [["T", 1e12], ["G", 1e9], ["M", 1e6], ["k", 1e4]]) {
    if (size >= scale) return `${+(value / (unit === "k" ? 1e3 : scale)).toPrecision(digits)}${unit}`;
  }
  return size !== 0 && size < 1e-3 ? Number(value.toPrecision(digits)).toExponential() : `${+value.toPrecision(digits)}`;
}
