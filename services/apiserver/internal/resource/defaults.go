package resource

import (
	"debug/elf"
	"encoding/binary"
	"hash/fnv"
	"sync"
)

// DefaultsVersion names this program's defaults. Objects that were stored under the
// same version have them all; 0 says nothing. It is derived from the identity that
// the Go linker gives a build, so it is another one after any change of the code,
// also after one that changes no default: then objects are completed in vain, once
// each time they are decoded, and nothing else.
var DefaultsVersion = sync.OnceValue(func() uint64 {
	// The running program, also where its file was replaced since it started.
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

// noteVersion is the version of a build by its ELF note: the lengths of name and
// description, a type, both padded to four bytes. A build without identity has an
// empty description.
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
