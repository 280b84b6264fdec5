package link

import (
	"errors"

	"github.com/vishvananda/netlink"
)

// maxDumps bounds how often a table is read again.
const maxDumps = 20

// Dump reads one of the kernel's tables with list, again if a change during the read may have hidden
// entries: on a machine where pods come and go, that happens at any time.
func Dump[T any](list func() ([]T, error)) ([]T, error) {
	for n := 1; ; n++ {
		all, err := list()
		if n == maxDumps || !errors.Is(err, netlink.ErrDumpInterrupted) {
			return all, err
		}
	}
}
