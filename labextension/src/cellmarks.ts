/** The mark at each cell that has run: "go back to before this cell"; and the line where time was turned back. */

import type { Cell, CodeCell } from '@jupyterlab/cells';
import type { INotebookTracker, NotebookPanel } from '@jupyterlab/notebook';
import { Throttler } from '@lumino/polling';
import type { Actions } from './actions';
import type { ISnapshot } from './api';
import { backIcon } from './icons';
import type { Snapshots } from './model';
import { TURNED_BACK } from './notebook';
import { beforeCell } from './tree';
import { short } from './words';

/** A notebook says at each keystroke that it changed. */
const REST_MS = 200;

const MARK = 'ijfs-CellMark';
const TURN = 'ijfs-TurnedBack';

/** Keeps the marks of the notebook in front as its tree and its cells are. */
export class CellMarks {
  private followed: NotebookPanel | null = null;
  private readonly later = new Throttler(() => this.update(), REST_MS);

  constructor(
    private readonly model: Snapshots,
    private readonly actions: Actions,
    private readonly tracker: INotebookTracker
  ) {
    model.changed.connect(() => this.update());
    tracker.currentChanged.connect((_, panel) => this.follow(panel));
    this.follow(tracker.currentWidget);
  }

  /** The snapshot to go back to for "before the active cell", if there is one. */
  beforeActive(): ISnapshot | null {
    const cell = this.tracker.activeCell;
    return cell === null ? null : this.before(cell);
  }

  async goBackBeforeActive(): Promise<void> {
    const snapshot = this.beforeActive();
    if (snapshot !== null) {
      await this.actions.goBack(snapshot);
    }
  }

  private before(cell: Cell): ISnapshot | null {
    const count = cell.model.type === 'code' ? (cell as CodeCell).model.executionCount : null;
    return count === null || !this.model.ready ? null : beforeCell(this.model.snapshots, this.model.here, count);
  }

  private follow(panel: NotebookPanel | null): void {
    this.followed?.content.modelContentChanged.disconnect(this.onContent, this);
    this.followed = panel;
    panel?.content.modelContentChanged.connect(this.onContent, this);
    panel?.disposed.connect(() => (this.followed = this.followed === panel ? null : this.followed));
    this.update();
  }

  private onContent(): void {
    void this.later.invoke();
  }

  private update(): void {
    this.followed?.content.widgets.forEach(cell => this.mark(cell));
  }

  private mark(cell: Cell): void {
    cell.toggleClass(TURN, cell.model.getMetadata(TURNED_BACK) !== undefined);
    const snapshot = this.before(cell);
    const button = cell.node.querySelector<HTMLButtonElement>(`:scope > .${MARK}`);
    if (snapshot === null) {
      button?.remove();
    } else {
      say(button ?? this.add(cell), cell as CodeCell, snapshot);
    }
  }

  private add(cell: Cell): HTMLButtonElement {
    const button = document.createElement('button');
    button.className = MARK;
    backIcon.element({ container: button });
    button.className = MARK;
    button.addEventListener('click', () => void this.actions.attempt(() => this.goBackBefore(cell)));
    cell.node.append(button);
    return button;
  }

  private async goBackBefore(cell: Cell): Promise<void> {
    const snapshot = this.before(cell);
    if (snapshot !== null) {
      await this.actions.goBack(snapshot);
    }
  }
}

function say(button: HTMLButtonElement, cell: CodeCell, snapshot: ISnapshot): void {
  const count = cell.model.executionCount ?? 0;
  const exact = snapshot.count === count - 1;
  const where = exact ? '' : `, as it was after [${snapshot.count}]`;
  const label = `Go back to before cell [${count}]${where} (${snapshot.message || short(snapshot.id)})`;
  if (button.title !== label) {
    button.title = label;
    button.setAttribute('aria-label', label);
  }
}
