package nftwatch

import (
	"testing"
	"time"

	"go.uber.org/goleak"

	"keelson.dev/services/node/internal/nettest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// reported returns whether a foreign change is reported within moment.
func reported(w *Watch, moment time.Duration) bool {
	select {
	case <-w.Foreign:
		return true
	case <-time.After(moment):
		return false
	}
}

func TestForeignChangesAreDetected(t *testing.T) {
	t.Parallel()
	ns := nettest.New(t, "node")
	ns.Run("nft", "add", "table", "ip", "mine")
	var w *Watch
	ns.Must(func() (err error) {
		w, err = Table("mine")
		return err
	})
	defer w.Close()
	for _, row := range []struct {
		what string
		args []string
		want bool
	}{
		{"a chain", []string{"add", "chain", "ip", "mine", "c"}, true},
		{"a rule", []string{"add", "rule", "ip", "mine", "c", "accept"}, true},
		{"a set", []string{"add", "set", "ip", "mine", "s", "{ type ipv4_addr; }"}, true},
		{"an element", []string{"add", "element", "ip", "mine", "s", "{ 10.0.0.1 }"}, true},
		{"another table", []string{"add", "table", "ip", "other"}, false},
		{"a chain there", []string{"add", "chain", "ip", "other", "c"}, false},
		{"a table of this name in another family", []string{"add", "table", "ip6", "mine"}, false},
		{"everything", []string{"flush", "ruleset"}, true},
	} {
		ns.Run("nft", row.args...)
		moment := 300 * time.Millisecond
		if row.want {
			moment = time.Minute
		}
		if got := reported(w, moment); got != row.want {
			t.Errorf("%s: reported %v, want %v", row.what, got, row.want)
		}
		w.Repair(func() {}) // one change may be reported twice
	}
	// Everything that is done within Own is ours, however much it is.
	ns.Run("nft", "add", "table", "ip", "mine")
	w.Repair(func() {})
	w.Own(func() {
		ns.Run("nft", "add", "set", "ip", "mine", "s", "{ type ipv4_addr; flags interval; }")
		for range 50 {
			ns.Run("nft", "add", "chain", "ip", "mine", "c")
		}
	})
	if reported(w, 300*time.Millisecond) {
		t.Error("a change of our own was reported")
	}
	ns.Run("nft", "add", "chain", "ip", "mine", "d")
	if !reported(w, time.Minute) {
		t.Error("no foreign change was reported after a change of our own")
	}
	// A change before the table is rebuilt needs no further repair, whether the reader has
	// seen it or not.
	for range 20 {
		ns.Run("nft", "add", "table", "ip", "mine")
		ns.Run("nft", "add", "chain", "ip", "mine", "e")
		w.Repair(func() { ns.Run("nft", "flush", "table", "ip", "mine") })
		if reported(w, 20*time.Millisecond) {
			t.Fatal("a repaired change was reported")
		}
	}
}

func FuzzTouches(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{28, 0, 0, 0, 3, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 8, 0, 1, 0, 'm', 'i', 'n', 'e'})
	w := &Watch{table: "mine"}
	f.Fuzz(func(_ *testing.T, b []byte) { w.touches(b) })
}
