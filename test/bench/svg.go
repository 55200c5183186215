package main

import (
	"fmt"
	"html"
	"math"
	"strings"
)

// Measures of the plots, in pixels.
const (
	plotLeft  = 150 // room for labels
	plotWidth = 520
	plotRow   = 22
	plotTop   = 64
	plotFoot  = 40
)

const svgStyle = `<style>text{font:12px sans-serif;fill:#222}.t{font-size:15px;font-weight:bold}.s{fill:#666}.g{stroke:#ddd}` +
	`.one{stroke:#888;stroke-dasharray:4 3}</style>`

// colours of series, readable to the colour-blind.
var colours = []string{"#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#999999", "#f0e442"}

// A canvas collects the elements of a plot.
type canvas struct {
	strings.Builder
	height int
}

func newCanvas(title, subtitle string, rows int) *canvas {
	c := &canvas{height: plotTop + rows*plotRow + plotFoot}
	fmt.Fprintf(c, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %[1]d %[2]d">`+
		`<rect width="100%%" height="100%%" fill="white"/>%s`, plotLeft+plotWidth+30, c.height, svgStyle)
	c.text(10, 20, "t", "start", title)
	c.text(10, 38, "s", "start", subtitle)
	return c
}

func (c *canvas) text(x, y float64, class, anchor, s string) {
	fmt.Fprintf(c, `<text x="%.1f" y="%.1f" class="%s" text-anchor="%s">%s</text>`, x, y, class, anchor, html.EscapeString(s))
}

func (c *canvas) line(x1, y1, x2, y2 float64, attrs string) {
	fmt.Fprintf(c, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" %s/>`, x1, y1, x2, y2, attrs)
}

func (c *canvas) end() string { return c.String() + "</svg>\n" }

// axis draws a vertical line and its label for each tick.
func (c *canvas) axis(ticks []float64, at func(float64) float64, format string) {
	for _, t := range ticks {
		c.line(at(t), plotTop-8, at(t), float64(c.height-plotFoot), `class="g"`)
		c.text(at(t), float64(c.height-plotFoot+16), "s", "middle", fmt.Sprintf(format, t))
	}
}

// legend names the series, right of the subtitle.
func (c *canvas) legend(names []string) {
	x := float64(plotLeft)
	for i, n := range names {
		fmt.Fprintf(c, `<circle cx="%.1f" cy="%d" r="4" fill="%s"/>`, x, plotTop-14, colours[i])
		c.text(x+8, plotTop-10, "s", "start", n)
		x += 20 + 7*float64(len(n))
	}
}

// ratioPlot shows CPU, p50 and p99 of ours over rust on a logarithmic axis, or of rust over splice without ours: a dot for
// the median, a bar for the middle half.
func (b *bencher) ratioPlot() string {
	pairs := b.pairs()
	if len(pairs) == 0 {
		return ""
	}
	p, ws := pairs[0], b.workloads()
	c := newCanvas(p[0]+" over "+p[1], "per-round ratio, median and middle half; left of 1 is better for "+p[0], len(ws))
	low, high := math.Log(0.05), math.Log(4)
	at := func(v float64) float64 {
		return plotLeft + plotWidth*(min(max(math.Log(v), low), high)-low)/(high-low)
	}
	c.axis([]float64{0.05, 0.1, 0.2, 0.4, 0.6, 1, 2, 4}, at, "%g")
	c.line(at(1), plotTop-8, at(1), float64(c.height-plotFoot), `class="one"`)
	metrics := []metric{proxyCPU, p50, p99}
	c.legend([]string{proxyCPU.name, p50.name, p99.name})
	for i, w := range ws {
		y := float64(plotTop + i*plotRow + plotRow/2)
		c.text(plotLeft-8, y+4, "", "end", w.Name)
		for j, m := range metrics {
			s := b.ratio(key{p[0], w.Name}, m, key{p[1], w.Name}, m)
			if s.n == 0 || (w.bytes() && j > 0) {
				continue
			}
			dy := y + float64(j-1)*5
			c.line(at(s.low), dy, at(s.high), dy, fmt.Sprintf(`stroke="%s" stroke-width="2"`, colours[j]))
			fmt.Fprintf(c, `<circle cx="%.1f" cy="%.1f" r="3.5" fill="%s"/>`, at(s.mid), dy, colours[j])
		}
	}
	return c.end()
}

// cpuPlot shows the proxies' CPU for each unit of work as bars, each workload scaled to its dearest system.
func (b *bencher) cpuPlot() string {
	ws := b.workloads()
	var names []string
	for _, s := range b.systems {
		if s.name() != directName {
			names = append(names, s.name())
		}
	}
	if len(ws) == 0 || len(names) == 0 || len(names) > len(colours) {
		return ""
	}
	c := newCanvas("CPU of the proxies", "median for each unit of work, in proportion to the dearest", len(ws)*(len(names)+1)/2)
	c.legend(names)
	y := float64(plotTop)
	for _, w := range ws {
		top := 0.0
		mid := make([]float64, len(names))
		for i, n := range names {
			if mid[i] = quantile(b.values(key{n, w.Name}, proxyCPU), .5); mid[i] > top {
				top = mid[i]
			}
		}
		c.text(plotLeft-8, y+float64(len(names))*5.5+2, "", "end", w.Name)
		for i, v := range mid {
			if top > 0 && !math.IsNaN(v) {
				width := v / top * (plotWidth - 90)
				fmt.Fprintf(c, `<rect x="%d" y="%.1f" width="%.1f" height="9" fill="%s"/>`, plotLeft, y, width, colours[i])
				c.text(plotLeft+width+5, y+8.5, "s", "start", short(v)+" "+w.unit())
			}
			y += plotRow / 2
		}
		y += plotRow / 2
	}
	return c.end()
}
