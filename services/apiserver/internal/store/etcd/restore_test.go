package etcd

import (
	"testing"
	"time"
)

func TestEraOf(t *testing.T) {
	for token, want := range map[string]int64{
		"": 0, "t1": 0, "17": 0, "99999999999-x": 0, "1700000789": 1700000789e9, "1700000789-ABC": 1700000789e9,
	} {
		if got := EraOf(token); got != want {
			t.Errorf("%q: %d, want %d", token, got, want)
		}
	}
	if now := time.Now().UnixNano(); now < EraOf("1700000789") {
		t.Errorf("the current time, %d, is before an era in the past", now)
	}
}

// A restored member keeps running when it learns of a cluster that was recovered before it was
// restored. That cluster's members stop.
func TestARestoredMemberIsOfALaterEra(t *testing.T) {
	a, b := restoredSeat("a", "x"), restoredSeat("b", "y")
	restored := &cards{path: t.TempDir() + "/" + memoryFile, outlived: make(chan struct{}),
		mem: memory{Seat: a, Member: true, Era: EraOf("1700000789-x"), Cards: map[string]card{}}}
	recovered := &cards{path: t.TempDir() + "/" + memoryFile, outlived: make(chan struct{}),
		mem: memory{Seat: b, Member: true, Era: 1700000000e9, Cards: map[string]card{}}}
	for to, received := range map[*cards]card{
		restored:  {Seat: b, Address: "b:1", Era: recovered.mem.Era},
		recovered: {Seat: a, Address: "a:1", Era: restored.mem.Era},
	} {
		if err := to.merge([]card{received}); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-restored.outlived:
		t.Error("the restored member stops")
	default:
	}
	select {
	case <-recovered.outlived:
	default:
		t.Error("the recovered member keeps running")
	}
}
