"""The look of the report: light and dark, wide and narrow, on paper."""

STYLE = """
:root{--paper:#fbfaf7;--card:#fff;--ink:#1c1b19;--soft:#5f5b54;--rule:#dedad2;--one:#0b5cad;--two:#b04a00;--three:#6b6b6b;
--faint:#8f8b84;--up:#0a6b3d;--down:#a3241c}
@media(prefers-color-scheme:dark){:root{--paper:#151617;--card:#1e2022;--ink:#ebe9e4;--soft:#a9a59d;--rule:#383a3d;
--one:#7db8f5;--two:#f0a368;--three:#a8a8a8;--faint:#7d8085;--up:#6fd09b;--down:#f39b92}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:76rem;padding:2.5rem 1.25rem 4rem;background:var(--paper);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;font-variant-numeric:tabular-nums}
h1{margin:0;font-size:2.2rem;line-height:1.15;letter-spacing:-.02em;overflow-wrap:anywhere}
h2{margin:3rem 0 1rem;font-size:1.3rem;letter-spacing:-.01em}
.kicker{margin:0 0 .3rem;color:var(--soft);font-size:.85rem;letter-spacing:.08em;text-transform:uppercase}
.facts{margin:.4rem 0 0;color:var(--soft)}
.lead{max-width:46rem;margin:1.6rem 0 0;font-size:1.2rem}
table{width:100%;border-collapse:collapse;background:var(--card);border:1px solid var(--rule);border-radius:10px;
border-spacing:0;overflow:hidden}
th,td{padding:.8rem 1rem;text-align:left;vertical-align:top}
thead th{font-size:.9rem;border-bottom:2px solid var(--rule)}
tbody tr+tr>*{border-top:1px solid var(--rule)}
.way{display:block;font-weight:400;font-size:.8rem;color:var(--soft)}
.value{font-size:1.35rem;font-weight:650}
.value small{font-size:.85rem;font-weight:400}
.gain{display:block;font-size:.85rem;font-weight:600}
.up{color:var(--up)}.down{color:var(--down)}
.others{margin:.3rem 0 0;padding:0;list-style:none;font-size:.82rem;color:var(--soft)}
.others b{font-weight:500;color:var(--ink)}
details{margin-top:.9rem;color:var(--soft)}summary{cursor:pointer}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.4rem 1.4rem;margin:.8rem 0 0}
dt{font-weight:600;color:var(--ink)}dd{margin:0;color:var(--soft);overflow-wrap:anywhere}
.photos{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,30rem),1fr));gap:1.25rem}
figure{margin:0;padding:.9rem;background:var(--card);border:1px solid var(--rule);border-radius:10px}
.trio{display:grid;grid-template-columns:repeat(3,1fr);gap:.5rem}
.trio img{display:block;width:100%;height:auto;border-radius:4px}
.trio span{display:block;margin-top:.2rem;font-size:.8rem;color:var(--soft)}
figcaption{display:flex;flex-wrap:wrap;gap:.1rem 1rem;justify-content:space-between;margin-top:.6rem;font-size:.92rem}
.key{color:var(--soft);overflow-wrap:anywhere}
q{flex-basis:100%;color:var(--soft);quotes:"“" "”"}
.chart{display:block;width:100%;height:auto;margin-top:.5rem;font-size:12px}
.chart text{fill:var(--soft)}.rule{stroke:var(--rule)}
.line{fill:none;stroke-width:2;stroke-linejoin:round}
polyline.one{stroke:var(--one)}polyline.two{stroke:var(--two);stroke-dasharray:7 4}
polyline.three{stroke:var(--three);stroke-dasharray:2 4}polyline.faint{stroke:var(--faint);stroke-width:1}
.legend{display:flex;flex-wrap:wrap;gap:0 1rem;margin:0;padding:0;list-style:none}
.legend li::before{content:"";display:inline-block;width:1.5rem;margin-right:.4rem;vertical-align:.25em;
border-top:2px solid var(--faint)}
.legend .one::before{border-top:3px solid var(--one)}.legend .two::before{border-top:3px dashed var(--two)}
.legend .three::before{border-top:3px dotted var(--three)}
@media(max-width:52rem){thead{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
table,tbody,tr{display:block}tbody tr{padding:1rem}tbody tr>*{display:grid;grid-template-columns:2fr 3fr;gap:0 .8rem;
padding:.5rem 0}tbody tr+tr{border-top:2px solid var(--rule)}tbody tr>*+*,
tbody tr+tr>*{border-top:1px solid var(--rule)}
tbody tr>th{display:block;padding-top:0;border:0!important;font-size:1.1rem}
td::before{content:attr(data-head);grid-row:1/4;font-size:.9rem;color:var(--soft)}
.lead{font-size:1.08rem}h1{font-size:1.7rem}body{padding-top:1.5rem}dl{display:block}dd{margin:0 0 .7rem}}
@media print{body{max-width:none}figure,tr{break-inside:avoid}}
"""
