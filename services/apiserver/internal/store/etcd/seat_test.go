package etcd

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"
)

func TestSeats(t *testing.T) {
	for seat, want := range map[string]bool{
		seatOf("a", ""): true, seatOf("apiserver-0.x", "0123abcd"): true,
		"": false, "a": false, seatPrefix: false, seatPrefix + "A": false, seatPrefix + "a/b": false, seatPrefix + "..": false,
		seatPrefix + "a_": false, seatPrefix + "a_../../x": false, seatPrefix + "a_0123abcd_": false, seatPrefix + "a:80": false,
	} {
		if isSeat(seat) != want {
			t.Errorf("isSeat(%q) is %v", seat, !want)
		}
	}
}

// Whatever another member announces, the number of cards is bounded, all have seats that are
// valid file names, and the own card is kept.
func FuzzCards(f *testing.F) {
	own := seatOf("a", "00000001")
	for _, received := range [][]card{
		{{Seat: seatOf("b", "00000002"), Address: "127.0.0.1:1", Number: 1}},
		{{Seat: own, Address: "elsewhere:1", Number: 1 << 62}},
		{{Seat: seatPrefix + "../../etc/passwd", Number: 5}, {Seat: seatOf("c", ""), Number: 5, Fresh: true, Founders: []string{own}}},
	} {
		b, err := json.Marshal(received)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, received []byte) {
		c := &cards{path: t.TempDir() + "/" + memoryFile, mem: memory{Seat: own, Cards: map[string]card{own: {Seat: own, Address: "here:1", Number: 1}}}}
		p := &peers{cards: c}
		for range 2 {
			_ = p.take(bytes.NewReader(received))
		}
		if got := p.own(); got.Address != "here:1" || got.Number != 1 {
			t.Fatalf("own card is %+v", got)
		}
		all := p.all()
		if len(all) > maxCards {
			t.Fatalf("%d cards", len(all))
		}
		for _, c := range all {
			if !isSeat(c.Seat) {
				t.Fatalf("seat %q", c.Seat)
			}
			_ = p.addresses(c.Seat)
		}
		_ = p.everywhere()
	})
}

// A member whose disk was emptied after its clock was set back is known by its new disk
// nevertheless: otherwise it would never be added.
func TestEmptiedDiskIsKnownThoughTheClockWasSetBack(t *testing.T) {
	open := func(name string) *cards {
		c, err := openCards(t.TempDir(), name, name+":1", "", nil, false)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	before := card{Seat: seatOf("a", "00000001"), Address: "a:1", Number: time.Now().Add(22 * time.Hour).UnixNano()}
	a, b := open("a"), open("b")
	if err := b.merge([]card{before}); err != nil {
		t.Fatal(err)
	}
	for range 2 { // they send each other everything
		if err := a.merge(b.all()); err != nil {
			t.Fatal(err)
		}
		if err := b.merge(a.all()); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []*cards{a, b} {
		if got, _ := c.newest("a"); got.Seat != a.seat() || !got.Fresh {
			t.Errorf("%s knows a as %+v, want its seat %s", nameOf(c.seat()), got, a.seat())
		}
	}
}
