/** Sizes and ages as the panel writes them. Run by tests/jupyter/test_labextension.py. */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { age, ago, bytes, duration, plural } from '../src/words.ts';

test('bytes have three digits at most', () => {
  const told = [0, 999, 1000, 9949, 9950, 999_499, 999_500, 12_345_678, 5e12].map(bytes);
  assert.deepEqual(told, ['0 B', '999 B', '1.0 kB', '9.9 kB', '10 kB', '999 kB', '1.0 MB', '12 MB', '5.0 TB']);
});

test('durations are milliseconds below a second', () => {
  assert.deepEqual([0.08, 0.9994, 0.9999, 2.345].map(duration), ['80 ms', '999 ms', '1.0 s', '2.3 s']);
});

test('an age is its largest unit', () => {
  const now = Date.parse('2026-11-30T12:00:00Z');
  const ago = (seconds: number): string => age(new Date(now - seconds * 1000).toISOString(), now);
  assert.deepEqual([-5, 59, 60, 3599, 3600, 86400, 8 * 86400].map(ago), ['now', 'now', '1 min', '59 min', '1 h', '1 d', '1 w']);
});

test('in a sentence an age is ago', () => {
  const now = Date.parse('2026-11-30T12:00:00Z');
  assert.deepEqual([59, 60].map(s => ago(new Date(now - s * 1000).toISOString(), now)), ['just now', '1 min ago']);
});

test('one of a thing is not many', () => {
  assert.deepEqual([plural(1, 'file'), plural(0, 'file'), plural(2, 'file')], ['1 file', '0 files', '2 files']);
});
