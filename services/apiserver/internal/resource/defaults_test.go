package resource

import (
	"encoding/binary"
	"testing"
)

func TestDefaultsVersion(t *testing.T) {
	if v := DefaultsVersion(); v == 0 || v != DefaultsVersion() {
		t.Errorf("got version %x, want a constant other than 0", v)
	}
}

func TestNoteVersion(t *testing.T) {
	note := func(id string) []byte {
		b := binary.LittleEndian.AppendUint32(nil, 4)
		b = binary.LittleEndian.AppendUint32(b, uint32(len(id)))
		b = binary.LittleEndian.AppendUint32(b, 4)
		return append(append(b, "Go\x00\x00"...), id...)
	}
	a, b := noteVersion(note("abc/def"), binary.LittleEndian), noteVersion(note("abc/deg"), binary.LittleEndian)
	if a == 0 || b == 0 || a == b {
		t.Errorf("%x and %x", a, b)
	}
	for _, bad := range [][]byte{nil, note("")[:5], note(""), note("abc")[:17], binary.LittleEndian.AppendUint64(nil, 1<<63)} {
		if v := noteVersion(bad, binary.LittleEndian); v != 0 {
			t.Errorf("%q: %x", bad, v)
		}
	}
}
