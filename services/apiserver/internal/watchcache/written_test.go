package watchcache

import (
	"strconv"
	"testing"
)

func TestAnnouncedIsBounded(t *testing.T) {
	c := New(Config{})
	for i := range 3 * maxExpected {
		c.Announce(&Written{WriteID: strconv.Itoa(i)})
	}
	if n := len(c.expected.byID); n != maxExpected {
		t.Errorf("%d writes are expected", n)
	}
	if c.expected.take("0") != nil || c.expected.take("") != nil {
		t.Error("the oldest write is still expected")
	}
	last := strconv.Itoa(3*maxExpected - 1)
	if c.expected.take(last) == nil || c.expected.take(last) != nil {
		t.Error("an announced write must be taken exactly once")
	}
	w := &Written{WriteID: "w"}
	c.Announce(w)
	c.Withdraw(w)
	if c.expected.take("w") != nil {
		t.Error("a withdrawn write is still expected")
	}
}
