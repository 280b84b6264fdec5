package soak_test

import (
	"math"
	"testing"
)

// point is a value at a time.
type point struct{ x, y float64 }

// slope is that of the line with the least squared distance from the points.
func slope(points []point) float64 {
	var mx, my float64
	for _, p := range points {
		mx += p.x
		my += p.y
	}
	n := float64(len(points))
	mx, my = mx/n, my/n
	var xy, xx float64
	for _, p := range points {
		xy += (p.x - mx) * (p.y - my)
		xx += (p.x - mx) * (p.x - mx)
	}
	return xy / xx
}

func TestSlope(t *testing.T) {
	for name, c := range map[string]struct {
		points []point
		want   float64
	}{
		"level":            {[]point{{1, 7}, {2, 7}, {5, 7}}, 0},
		"a line":           {[]point{{1, 3}, {2, 5}, {4, 9}}, 2},
		"falling":          {[]point{{0, 3}, {1, 2}, {2, 1}}, -1},
		"a tooth is level": {[]point{{0, 1}, {1, 2}, {2, 1}}, 0},
		"least squares":    {[]point{{0, 0}, {1, 2}, {2, 1}, {3, 3}}, 0.8},
	} {
		if got := slope(c.points); math.Abs(got-c.want) > 1e-9 {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}
