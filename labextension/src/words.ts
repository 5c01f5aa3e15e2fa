/** Sizes, ages and names as people read them. */

const UNITS = ['B', 'kB', 'MB', 'GB', 'TB'];

/** 12345678 as `12 MB`: three digits at most. */
export function bytes(count: number): string {
  let unit = 0;
  let value = count;
  while (value >= 999.5 && unit < UNITS.length - 1) {
    value /= 1000;
    unit += 1;
  }
  const digits = unit > 0 && value < 9.95 ? 1 : 0;
  return `${value.toFixed(digits)} ${UNITS[unit]}`;
}

/** 0.0823 as `82 ms`. */
export function duration(seconds: number): string {
  return seconds < 0.9995 ? `${Math.round(seconds * 1000)} ms` : `${seconds.toFixed(1)} s`;
}

const STEPS: [number, string][] = [
  [60, 'min'],
  [3600, 'h'],
  [86400, 'd'],
  [604800, 'w']
];

/** How long ago, in one short word: `now`, `3 min`, `2 h`, `5 d`. */
export function age(created: string, now: number): string {
  const seconds = Math.max(0, (now - Date.parse(created)) / 1000);
  const step = STEPS.filter(([length]) => seconds >= length).pop();
  return step === undefined ? 'now' : `${Math.floor(seconds / step[0])} ${step[1]}`;
}

/** The same in a sentence: `just now`, `3 min ago`. */
export function ago(created: string, now: number): string {
  const since = age(created, now);
  return since === 'now' ? 'just now' : `${since} ago`;
}

/** As many digits of an id as a person compares. */
export function short(id: string): string {
  return id.slice(0, 8);
}

/** A count with its noun: `1 cell`, `3 cells`. */
export function plural(count: number, noun: string): string {
  return `${count} ${noun}${count === 1 ? '' : 's'}`;
}
