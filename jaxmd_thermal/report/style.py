"""Style sheet of the report."""

CSS = """
:root{--ink:#1d2733;--soft:#5b6570;--line:#dfe3e8;--paper:#fff;--back:#f4f6f8;
--good:#1f7a4d;--bad:#a8480f;--blue:#1f5fa8}
*{box-sizing:border-box}
body{margin:0;background:var(--back);color:var(--ink);font:16px/1.55 -apple-system,"Segoe UI",Roboto,"Helvetica Neue",
Arial,sans-serif;-webkit-text-size-adjust:100%}
main{max-width:1080px;margin:0 auto;padding:28px 20px 60px}
.brand{margin:0;color:var(--soft);font-size:13px;letter-spacing:.08em;text-transform:uppercase}
h1{margin:.1em 0 .3em;font-size:clamp(26px,4.4vw,38px);line-height:1.15;letter-spacing:-.015em}
h2{margin:44px 0 12px;font-size:21px;letter-spacing:-.01em}
h3{margin:0 0 6px;font-size:15px}
.lead{margin:.2em 0 0;font-size:17px;color:var(--soft)}
.alarm{color:#b3261e;font-weight:600}
.cards,.grid{display:grid;gap:18px;
grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr));align-items:start}
.grid{grid-template-columns:repeat(auto-fill,minmax(min(100%,440px),1fr))}
.cards{margin-top:22px;align-items:stretch}
.card,figure,.panel,.next{margin:0;background:var(--paper);border:1px solid var(--line);border-radius:10px;
padding:18px 20px}
.card{border-top:5px solid var(--soft)}
.card.good{border-top-color:var(--good)}.card.bad{border-top-color:var(--bad)}
.method{margin:0;font-weight:600}
.method span{display:block;font-weight:400;font-size:14px;color:var(--soft)}
.kappa{margin:10px 0 4px;font-size:clamp(28px,5vw,42px);font-weight:650;letter-spacing:-.02em;line-height:1.15}
.kappa small{font-size:.45em;font-weight:400;color:var(--soft);letter-spacing:0;white-space:nowrap}
.verdict{margin:0}.good .verdict b{color:var(--good)}.bad .verdict b{color:var(--bad)}
.why{margin:6px 0 0;color:var(--soft);font-size:14.5px}
.next{margin-top:18px}.next p{margin:0 0 6px}
pre{margin:0;padding:10px 12px;background:#eef1f4;border-radius:6px;font:13.5px/1.5 ui-monospace,SFMono-Regular,Menlo,
Consolas,monospace;white-space:pre-wrap;overflow-wrap:anywhere}
figure.wide{grid-column:1/-1}
.many{overflow-x:auto}.many .tensor{font-size:13px}.many .why{text-align:left;white-space:normal;color:var(--bad)}
figure svg{display:block;height:auto;max-width:100%}
figure.picture svg{max-width:380px;margin:0 auto}
figcaption{margin-top:6px;color:var(--soft);font-size:13.5px;line-height:1.45}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:15px;width:100%}
th,td{padding:5px 8px;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
.list th{font-weight:400;color:var(--soft);width:46%}.list td{overflow-wrap:anywhere}
.tensor td{text-align:right;white-space:nowrap}.tensor th{color:var(--soft);font-weight:600}
.tensor tr:first-child th{text-align:right}
.fine{font-size:14px;color:var(--soft)}.fine table{max-width:520px;font-size:14px}.fine pre{margin-bottom:12px}
@media (max-width:520px){main{padding:18px 12px 40px}.card,figure,.panel,.next{padding:14px 12px}
.tensor{font-size:12.5px}
.tensor td,.tensor th{padding:5px 3px}}
@media print{body{background:#fff;font-size:10.5pt}main{max-width:none;padding:0}h2{margin-top:22px}
.card,figure,.panel,.next{break-inside:avoid}h2{break-after:avoid}.grid,.cards{grid-template-columns:1fr 1fr;gap:12px}
.kappa{font-size:24pt}}
"""
