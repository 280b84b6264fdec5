package seldom

import (
	"fmt"
	"testing"
	"time"
)

func TestRepeatedLinesAreWithheld(t *testing.T) {
	var l Log
	now := time.Unix(1000, 0)
	logged, withheld := 0, 0
	for range 300 { // thirty seconds
		if n, ok := l.Allow("election timeout", now); ok {
			logged++
			withheld += n
		}
		now = now.Add(100 * time.Millisecond)
	}
	if logged != 3 || withheld != 198 {
		t.Errorf("logged %d times with %d withheld, want 3 and 198", logged, withheld)
	}
	if _, ok := l.Allow("another", now); !ok {
		t.Error("a new line was withheld")
	}
}

func TestMemoryIsBounded(t *testing.T) {
	var l Log
	for i := range 10 * maxKeys {
		if _, ok := l.Allow(fmt.Sprint(i), time.Unix(1000, 0)); !ok {
			t.Fatalf("line %d was withheld", i)
		}
	}
	if len(l.logged) > maxKeys {
		t.Errorf("%d lines are remembered, want at most %d", len(l.logged), maxKeys)
	}
}
