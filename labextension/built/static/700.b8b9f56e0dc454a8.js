"use strict";(self.rspackChunkijfs_panel=self.rspackChunkijfs_panel||[]).push([[700],{646(o,e,r){var i=r(601),t=r.n(i),a=r(314),s=(r.n(a))()(t());s.push([o.id,`/* The panel "Snapshots". All colours are the theme's, but for the lanes of the tree, which have a set for each. */

.ijfs-Panel,
.ijfs-Compare,
.ijfs-Status {
  --ijfs-lane0: #1f77c9;
  --ijfs-lane1: #c4561a;
  --ijfs-lane2: #2b8a3e;
  --ijfs-lane3: #9c36b5;
  --ijfs-lane4: #b08800;
  --ijfs-lane5: #0b8599;
  --ijfs-added: rgb(43 138 62 / 16%);
  --ijfs-removed: rgb(201 42 42 / 14%);
}

[data-jp-theme-light='false'] .ijfs-Panel,
[data-jp-theme-light='false'] .ijfs-Compare,
[data-jp-theme-light='false'] .ijfs-Status {
  --ijfs-lane0: #6cb6ff;
  --ijfs-lane1: #ff9e64;
  --ijfs-lane2: #7bd88f;
  --ijfs-lane3: #d8a5ff;
  --ijfs-lane4: #e6c84c;
  --ijfs-lane5: #66d9e8;
  --ijfs-added: rgb(123 216 143 / 18%);
  --ijfs-removed: rgb(255 110 110 / 20%);
}

.ijfs-Panel {
  display: flex;
  flex-direction: column;
  min-width: 200px;
  background: var(--jp-layout-color1);
  color: var(--jp-ui-font-color1);
  font-size: var(--jp-ui-font-size1);
}

/* Buttons */

.ijfs-Button,
.ijfs-Tool {
  display: inline-flex;
  align-items: center;
  justify-content: center;
  gap: 5px;
  min-height: 26px;
  padding: 2px 8px;
  border: 1px solid var(--jp-border-color1);
  border-radius: 4px;
  background: var(--jp-layout-color1);
  color: var(--jp-ui-font-color1);
  font: inherit;
  white-space: nowrap;
  cursor: pointer;
}

.ijfs-Button svg,
.ijfs-Tool svg,
.ijfs-CellMark svg,
.ijfs-Status svg {
  display: block;
  width: 14px;
  height: 14px;
}

.ijfs-Tool {
  padding: 2px 5px;
  border-color: transparent;
  background: none;
}

.ijfs-Button:hover:enabled,
.ijfs-Tool:hover:enabled {
  background: var(--jp-layout-color2);
}

.ijfs-Button.ijfs-mod-main {
  border-color: var(--jp-brand-color1);
  background: var(--jp-brand-color1);
  color: var(--jp-ui-inverse-font-color1);
}

.ijfs-Button.ijfs-mod-main:hover:enabled {
  background: var(--jp-brand-color0);
}

.ijfs-Button:disabled,
.ijfs-Tool:disabled {
  opacity: 0.45;
  cursor: default;
}

.ijfs-Button:focus-visible,
.ijfs-Tool:focus-visible,
.ijfs-CellMark:focus-visible,
.ijfs-Status-button:focus-visible,
.ijfs-Filter input:focus-visible,
.ijfs-Filter select:focus-visible,
.ijfs-Tree:focus-visible {
  outline: 2px solid var(--jp-brand-color1);
  outline-offset: -2px;
}

/* The head */

.ijfs-Tools,
.ijfs-Filter {
  display: flex;
  flex: none;
  gap: 4px;
  padding: 8px 8px 0;
}

.ijfs-Space {
  flex: 1;
}

.ijfs-Filter {
  padding-bottom: 8px;
  border-bottom: 1px solid var(--jp-border-color2);
}

.ijfs-Filter input,
.ijfs-Filter select {
  box-sizing: border-box;
  flex: 1 1 60px;
  width: 60px;
  min-width: 0;
  height: 26px;
  margin: 0;
  padding: 0 6px;
  border: 1px solid var(--jp-border-color1);
  border-radius: 4px;
  background: var(--jp-layout-color0);
  color: var(--jp-ui-font-color1);
  font: inherit;
}

.ijfs-Filter select {
  flex: none;
  width: 118px;
  padding: 0 2px;
  background: var(--jp-layout-color1);
}

.ijfs-Notice {
  flex: none;
  padding: 10px 12px;
  border-bottom: 1px solid var(--jp-border-color2);
  border-left: 3px solid var(--jp-warn-color1);
  background: var(--jp-layout-color2);
}

.ijfs-Notice.ijfs-mod-error {
  border-left-color: var(--jp-error-color1);
}

.ijfs-Notice p,
.ijfs-Empty p {
  margin: 0 0 6px;
}

.ijfs-Hint {
  color: var(--jp-ui-font-color2);
  line-height: 1.45;
}

.ijfs-Empty {
  flex: 1;
  padding: 32px 20px;
  text-align: center;
}

.ijfs-Empty .ijfs-Hint {
  margin-bottom: 14px;
}

.ijfs-Empty-mark svg {
  width: 36px;
  height: 36px;
  margin-bottom: 8px;
  color: var(--jp-ui-font-color3);
}

/* The tree */

.ijfs-Tree {
  position: relative;
  flex: 1 1 160px;
  min-height: 120px;
  overflow: hidden auto;
  contain: strict;
}

.ijfs-Tree-all {
  position: relative;
}

.ijfs-Row,
.ijfs-Gap {
  position: absolute;
  right: 0;
  left: 0;
  box-sizing: border-box;
}

.ijfs-Row {
  display: flex;
  padding-right: 8px;
  cursor: pointer;
  user-select: none;
}

.ijfs-Row:hover {
  background: var(--jp-layout-color2);
}

.ijfs-Row.ijfs-mod-selected {
  background: color-mix(in srgb, var(--jp-brand-color1) 12%, var(--jp-layout-color1));
}

.ijfs-Tree:focus .ijfs-Row.ijfs-mod-selected {
  background: color-mix(in srgb, var(--jp-brand-color1) 20%, var(--jp-layout-color1));
  box-shadow: inset 2px 0 0 var(--jp-brand-color1);
}

.ijfs-Joints {
  flex: none;
  overflow: visible;
}

.ijfs-Joints path {
  fill: none;
  stroke-width: 2;
}

.ijfs-Joints circle {
  stroke: var(--jp-layout-color1);
  stroke-width: 2;
}

.ijfs-Joints circle.ijfs-mod-here {
  fill: var(--jp-layout-color1);
  stroke: inherit;
  stroke-width: 3;
}

.ijfs-Joints .ijfs-Dots {
  stroke-dasharray: 2 4;
}

.ijfs-lane0 { stroke: var(--ijfs-lane0); fill: var(--ijfs-lane0); }
.ijfs-lane1 { stroke: var(--ijfs-lane1); fill: var(--ijfs-lane1); }
.ijfs-lane2 { stroke: var(--ijfs-lane2); fill: var(--ijfs-lane2); }
.ijfs-lane3 { stroke: var(--ijfs-lane3); fill: var(--ijfs-lane3); }
.ijfs-lane4 { stroke: var(--ijfs-lane4); fill: var(--ijfs-lane4); }
.ijfs-lane5 { stroke: var(--ijfs-lane5); fill: var(--ijfs-lane5); }

.ijfs-Row-text {
  flex: 1;
  min-width: 0;
  padding: 3px 0 0 4px;
  line-height: 17px;
}

.ijfs-Row-first,
.ijfs-Row-second {
  display: flex;
  gap: 5px;
  overflow: hidden;
  white-space: nowrap;
}

.ijfs-Row-message {
  flex: 1;
  overflow: hidden;
  text-overflow: ellipsis;
}

.ijfs-mod-here .ijfs-Row-message {
  font-weight: 600;
}

.ijfs-Row-message.ijfs-mod-none,
.ijfs-Row-folded {
  color: var(--jp-ui-font-color2);
  font-style: italic;
}

.ijfs-Row-folded {
  padding-left: 4px;
  line-height: 40px;
}

.ijfs-Row-age,
.ijfs-Row-facts {
  flex: none;
  color: var(--jp-ui-font-color2);
  font-size: var(--jp-ui-font-size0);
}

.ijfs-Row-facts {
  flex: 0 1000 auto;
  overflow: hidden;
  font-variant-numeric: tabular-nums;
  text-overflow: ellipsis;
}

.ijfs-Chip {
  flex: 0 1 auto;
  min-width: 24px;
  max-width: 130px;
  padding: 0 5px;
  overflow: hidden;
  border: 1px solid var(--jp-border-color1);
  border-radius: 8px;
  background: none;
  color: var(--jp-ui-font-color1);
  font: inherit;
  font-size: var(--jp-ui-font-size0);
  line-height: 14px;
  text-overflow: ellipsis;
  white-space: nowrap;
}

.ijfs-Chip.ijfs-mod-here {
  flex: none;
  border-color: var(--jp-brand-color1);
  background: var(--jp-brand-color1);
  color: var(--jp-ui-inverse-font-color1);
}

.ijfs-Chip.ijfs-mod-live {
  border-color: var(--ijfs-lane2);
  color: var(--ijfs-lane2);
}

.ijfs-Chip.ijfs-mod-tag {
  border-color: var(--ijfs-lane3);
  color: var(--ijfs-lane3);
}

button.ijfs-Chip {
  cursor: pointer;
}

/* The selected snapshot */

.ijfs-Details {
  flex: none;
  max-height: 50%;
  padding: 8px;
  overflow-y: auto;
  border-top: 1px solid var(--jp-border-color1);
  background: var(--jp-layout-color1);
}

.ijfs-Details-title {
  margin: 0 0 6px;
  overflow-wrap: anywhere;
  font-size: var(--jp-ui-font-size2);
  font-weight: 600;
}

.ijfs-Facts {
  display: grid;
  grid-template-columns: auto 1fr;
  gap: 1px 8px;
  margin: 0 0 8px;
  font-size: var(--jp-ui-font-size0);
}

.ijfs-Facts dt {
  color: var(--jp-ui-font-color2);
}

.ijfs-Facts dd {
  min-width: 0;
  margin: 0;
  overflow-wrap: anywhere;
}

.ijfs-Details > .ijfs-Button {
  width: 100%;
}

.ijfs-Buttons {
  display: grid;
  grid-template-columns: repeat(auto-fill, minmax(100px, 1fr));
  gap: 4px;
  margin-top: 4px;
}

.ijfs-Buttons .ijfs-Button {
  justify-content: flex-start;
}

/* At cells */

.ijfs-CellMark {
  position: absolute;
  z-index: 2;
  top: 26px;
  left: 34px;
  display: none;
  padding: 3px;
  border: 0;
  border-radius: 4px;
  background: none;
  color: var(--jp-ui-font-color2);
  cursor: pointer;
}

.jp-Cell:hover > .ijfs-CellMark,
.jp-Cell.jp-mod-active > .ijfs-CellMark,
.ijfs-CellMark:focus-visible {
  display: block;
}

.ijfs-CellMark:hover {
  background: var(--jp-layout-color3);
  color: var(--jp-ui-font-color0);
}

.jp-Cell.ijfs-TurnedBack::before {
  content: '↶ time was turned back to before here';
  display: block;
  margin: 2px 0 4px;
  border-top: 2px dashed var(--jp-warn-color1);
  color: var(--jp-ui-font-color2);
  font-family: var(--jp-ui-font-family);
  font-size: var(--jp-ui-font-size0);
}

/* The status bar */

.ijfs-Status-button {
  display: flex;
  align-items: center;
  gap: 5px;
  height: 100%;
  padding: 0 6px;
  border: 0;
  background: none;
  color: inherit;
  font: inherit;
  font-size: var(--jp-ui-font-size1);
  cursor: pointer;
}

.ijfs-Status-button:hover {
  background: var(--jp-layout-color3);
}

.ijfs-Status-dot.ijfs-mod-good { color: var(--ijfs-lane2); }
.ijfs-Status-dot.ijfs-mod-busy { color: var(--ijfs-lane4); }
.ijfs-Status-dot.ijfs-mod-bad { color: var(--jp-error-color1); }
.ijfs-Status-dot.ijfs-mod-none { color: var(--jp-ui-font-color3); }

/* The comparison */

.ijfs-Compare {
  overflow: auto;
  background: var(--jp-layout-color1);
  color: var(--jp-ui-font-color1);
  font-size: var(--jp-ui-font-size1);
}

.ijfs-Compare-all {
  max-width: 900px;
  padding: 8px 16px 24px;
}

.ijfs-Compare h2 {
  margin: 16px 0 8px;
  font-size: var(--jp-ui-font-size2);
}

.ijfs-CellDiff {
  margin-bottom: 10px;
  overflow: hidden;
  border: 1px solid var(--jp-border-color2);
  border-radius: 4px;
}

.ijfs-CellDiff header {
  padding: 2px 8px;
  background: var(--jp-layout-color2);
  color: var(--jp-ui-font-color2);
}

.ijfs-Compare pre {
  margin: 0;
  padding: 4px 0;
  overflow-x: auto;
  font-family: var(--jp-code-font-family);
  font-size: var(--jp-code-font-size);
  line-height: var(--jp-code-line-height);
}

.ijfs-Compare pre > div,
.ijfs-Outputs pre {
  padding: 0 8px;
}

.ijfs-Compare pre .ijfs-mod-added,
.ijfs-Outputs .ijfs-mod-added {
  background: var(--ijfs-added);
}

.ijfs-Compare pre .ijfs-mod-removed,
.ijfs-Outputs .ijfs-mod-removed {
  background: var(--ijfs-removed);
}

.ijfs-Compare summary {
  padding: 2px 8px;
  color: var(--jp-ui-font-color2);
  cursor: pointer;
}

.ijfs-Compare table {
  margin-bottom: 8px;
  border-collapse: collapse;
}

.ijfs-Compare th,
.ijfs-Compare td {
  padding: 3px 12px 3px 4px;
  border-bottom: 1px solid var(--jp-border-color3);
  text-align: left;
}

.ijfs-Compare td {
  overflow-wrap: anywhere;
}

.ijfs-Compare td:last-child {
  white-space: nowrap;
}

.ijfs-Compare tr.ijfs-mod-added { background: var(--ijfs-added); }
.ijfs-Compare tr.ijfs-mod-removed { background: var(--ijfs-removed); }

/* For screen readers alone */
.ijfs-Unseen {
  position: absolute;
  width: 1px;
  height: 1px;
  overflow: hidden;
  clip-path: inset(50%);
  white-space: nowrap;
}

/* Questions */

.ijfs-List {
  max-width: 480px;
  margin: 0;
  font-family: var(--jp-code-font-family);
  font-size: var(--jp-code-font-size);
  overflow-wrap: anywhere;
  white-space: pre-wrap;
}
`,""]),r.d(e,{},{A:s})},314(o){o.exports=function(o){var e=[];return e.toString=function(){return this.map(function(e){var r="",i=void 0!==e[5];return e[4]&&(r+="@supports (".concat(e[4],") {")),e[2]&&(r+="@media ".concat(e[2]," {")),i&&(r+="@layer".concat(e[5].length>0?" ".concat(e[5]):""," {")),r+=o(e),i&&(r+="}"),e[2]&&(r+="}"),e[4]&&(r+="}"),r}).join("")},e.i=function(o,r,i,t,a){"string"==typeof o&&(o=[[null,o,void 0]]);var s={};if(i)for(var n=0;n<this.length;n++){var l=this[n][0];null!=l&&(s[l]=!0)}for(var f=0;f<o.length;f++){var p=[].concat(o[f]);i&&s[p[0]]||(void 0!==a&&(void 0===p[5]||(p[1]="@layer".concat(p[5].length>0?" ".concat(p[5]):""," {").concat(p[1],"}")),p[5]=a),r&&(p[2]&&(p[1]="@media ".concat(p[2]," {").concat(p[1],"}")),p[2]=r),t&&(p[4]?(p[1]="@supports (".concat(p[4],") {").concat(p[1],"}"),p[4]=t):p[4]="".concat(t)),e.push(p))}},e}},601(o){o.exports=function(o){return o[1]}},72(o){var e=[];function r(o){for(var r=-1,i=0;i<e.length;i++)if(e[i].identifier===o){r=i;break}return r}function i(o,i){for(var t={},a=[],s=0;s<o.length;s++){var n=o[s],l=i.base?n[0]+i.base:n[0],f=t[l]||0,p="".concat(l," ").concat(f);t[l]=f+1;var d=r(p),c={css:n[1],media:n[2],sourceMap:n[3],supports:n[4],layer:n[5]};if(-1!==d)e[d].references++,e[d].updater(c);else{var j=function(o,e){var r=e.domAPI(e);return r.update(o),function(e){e?(e.css!==o.css||e.media!==o.media||e.sourceMap!==o.sourceMap||e.supports!==o.supports||e.layer!==o.layer)&&r.update(o=e):r.remove()}}(c,i);i.byIndex=s,e.splice(s,0,{identifier:p,updater:j,references:1})}a.push(p)}return a}o.exports=function(o,t){var a=i(o=o||[],t=t||{});return function(o){o=o||[];for(var s=0;s<a.length;s++){var n=r(a[s]);e[n].references--}for(var l=i(o,t),f=0;f<a.length;f++){var p=r(a[f]);0===e[p].references&&(e[p].updater(),e.splice(p,1))}a=l}}},659(o){var e={};o.exports=function(o,r){var i=function(o){if(void 0===e[o]){var r=document.querySelector(o);if(window.HTMLIFrameElement&&r instanceof window.HTMLIFrameElement)try{r=r.contentDocument.head}catch(o){r=null}e[o]=r}return e[o]}(o);if(!i)throw Error("Couldn't find a style target. This probably means that the value for the 'insert' parameter is invalid.");i.appendChild(r)}},540(o){o.exports=function(o){var e=document.createElement("style");return o.setAttributes(e,o.attributes),o.insert(e,o.options),e}},56(o,e,r){o.exports=function(o){var e=r.nc;e&&o.setAttribute("nonce",e)}},825(o){o.exports=function(o){if("u"<typeof document)return{update:function(){},remove:function(){}};var e=o.insertStyleElement(o);return{update:function(r){var i,t,a;i="",r.supports&&(i+="@supports (".concat(r.supports,") {")),r.media&&(i+="@media ".concat(r.media," {")),(t=void 0!==r.layer)&&(i+="@layer".concat(r.layer.length>0?" ".concat(r.layer):""," {")),i+=r.css,t&&(i+="}"),r.media&&(i+="}"),r.supports&&(i+="}"),(a=r.sourceMap)&&"u">typeof btoa&&(i+="\n/*# sourceMappingURL=data:application/json;base64,".concat(btoa(unescape(encodeURIComponent(JSON.stringify(a))))," */")),o.styleTagTransform(i,e,o.options)},remove:function(){var o;null===(o=e).parentNode||o.parentNode.removeChild(o)}}}},113(o){o.exports=function(o,e){if(e.styleSheet)e.styleSheet.cssText=o;else{for(;e.firstChild;)e.removeChild(e.firstChild);e.appendChild(document.createTextNode(o))}}},959(o,e,r){var i=r(72),t=r.n(i),a=r(825),s=r.n(a),n=r(659),l=r.n(n),f=r(56),p=r.n(f),d=r(540),c=r.n(d),j=r(113),u=r.n(j),v=r(646),h={};h.styleTagTransform=u(),h.setAttributes=p(),h.insert=l().bind(null,"head"),h.domAPI=s(),h.insertStyleElement=c(),t()(v.A,h),v.A&&v.A.locals&&v.A.locals}}]);