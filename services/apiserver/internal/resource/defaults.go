package resource

import (
	"debug/elf"
	"encoding/binary"
	"hash/fnv"
	"sync"
)

// DefaultsVersion identifies this program's defaults. Objects that were stored under the same
// version have all of them; 0 matches no version. It is derived from the build ID that the Go
// linker assigns, so it changes with any change of the code, even one that changes no default. In
// that case defaults are applied again, without effect, each time an object is decoded.
var DefaultsVersion = sync.OnceValue(func() uint64 {
	// The running program, even if its file has been replaced since it started.
	f, err := elf.Open("/proc/self/exe")
	if err != nil {
		return 0
	}
	defer f.Close()
	s := f.Section(".note.go.buildid")
	if s == nil {
		return 0
	}
	note, err := s.Data()
	if err != nil {
		return 0
	}
	return noteVersion(note, f.ByteOrder)
})

// noteVersion returns the version of a build from its ELF note: the lengths of name and
// description, a type, and both texts padded to four bytes. The description of a build without an
// ID is empty.
func noteVersion(note []byte, order binary.ByteOrder) uint64 {
	const head = 12
	if len(note) < head {
		return 0
	}
	name, size := uint64(order.Uint32(note)), uint64(order.Uint32(note[4:]))
	start := head + (name+3)/4*4
	if size == 0 || start+size > uint64(len(note)) {
		return 0
	}
	h := fnv.New64a()
	h.Write(note[start : start+size])
	return h.Sum64()
}
