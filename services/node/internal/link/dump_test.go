package link

import (
	"errors"
	"testing"

	"github.com/vishvananda/netlink"
)

func TestDumpReadsAgain(t *testing.T) {
	reads := 0
	read := func(interrupted int, last error) func() ([]int, error) {
		reads = 0
		return func() ([]int, error) {
			if reads++; reads <= interrupted {
				return []int{1}, netlink.ErrDumpInterrupted
			}
			return []int{1, 2}, last
		}
	}
	if all, err := Dump(read(3, nil)); err != nil || len(all) != 2 || reads != 4 {
		t.Errorf("%v, %v after %d reads", all, err, reads)
	}
	failed := errors.New("no buffer space")
	if _, err := Dump(read(0, failed)); !errors.Is(err, failed) || reads != 1 {
		t.Errorf("%v after %d reads", err, reads)
	}
	if _, err := Dump(read(1000, nil)); !errors.Is(err, netlink.ErrDumpInterrupted) || reads != maxDumps {
		t.Errorf("%v after %d reads", err, reads)
	}
}
