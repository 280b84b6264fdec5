package pacetest

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestGiven(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := Start(t)
		began := time.Now()
		<-time.After(time.Second + time.Millisecond)
		middle := time.Now()
		<-time.After(time.Second)
		if got := c.Since(began); got != 2*time.Second {
			t.Errorf("given %s of two seconds", got)
		}
		if got := c.Given(began, middle); got != time.Second {
			t.Errorf("given %s of the first second", got)
		}
	})
}

func TestStallsDoNotCount(t *testing.T) {
	began := time.Now()
	c := &Clock{}
	for _, at := range []time.Duration{period, 2 * period, time.Minute, time.Minute + period} {
		c.ticks = append(c.ticks, began.Add(at))
	}
	if got := c.Given(began, began.Add(2*time.Minute)); got != 4*period {
		t.Errorf("given %s, want %s", got, 4*period)
	}
}
