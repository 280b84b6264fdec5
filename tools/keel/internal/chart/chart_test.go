package chart

import (
	"os"
	"path/filepath"
	"testing"
)

func TestPlanStart(t *testing.T) {
	for name, c := range map[string]struct {
		seen Seen
		want Start
	}{
		"the first one founds":             {Seen{}, Start{Origin: Founded, Record: true}},
		"the first one restores":           {Seen{Snapshot: true}, Start{Origin: Founded, Record: true, Restore: true}},
		"a founder that died early":        {Seen{Origin: Founded}, Start{Origin: Founded, Record: true}},
		"a founder continues":              {Seen{Origin: Founded, Recorded: true, Snapshot: true}, Start{Origin: Founded}},
		"a founder without its disk joins": {Seen{Recorded: true, Snapshot: true}, Start{Origin: Joined, Lost: true}},
		"others join":                      {Seen{Ordinal: 2, Snapshot: true}, Start{Origin: Joined}},
		"others continue":                  {Seen{Ordinal: 2, Origin: Joined}, Start{Origin: Joined}},
		"one that left joins anew":         {Seen{Ordinal: 4, Origin: Joined, Leaving: true}, Start{Origin: Joined, Wipe: true}},
		"one that could not leave stays":   {Seen{Ordinal: 4, Origin: Joined, Leaving: true, Member: true}, Start{Origin: Joined}},
	} {
		if got := PlanStart(c.seen); got != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}

// Every state that can be seen keeps the invariants.
func TestPlanStartKeepsTheInvariants(t *testing.T) {
	flags := []bool{false, true}
	for _, origin := range []Origin{Empty, Founded, Joined} {
		for ordinal := range 2 {
			for _, leaving := range flags {
				for _, member := range flags {
					for _, recorded := range flags {
						for _, snapshot := range flags {
							s := Seen{Ordinal: ordinal, Origin: origin, Leaving: leaving, Member: member, Recorded: recorded, Snapshot: snapshot}
							p := PlanStart(s)
							continues := origin == Founded && !p.Wipe
							switch {
							case p.Origin == Founded && !continues && (ordinal > 0 || recorded):
								t.Errorf("%+v founds a second control plane", s)
							case p.Wipe && (member || !leaving):
								t.Errorf("%+v empties the volume of a member", s)
							case p.Restore && (origin != Empty && !p.Wipe || recorded || ordinal > 0):
								t.Errorf("%+v restores over what there is", s)
							case p.Origin == Founded && !recorded && !p.Record:
								t.Errorf("%+v founds without a record", s)
							}
						}
					}
				}
			}
		}
	}
}

func TestLeaves(t *testing.T) {
	for _, c := range []struct {
		ordinal, replicas int
		deleted, want     bool
	}{
		{2, 3, false, false}, // restarted
		{2, 1, false, true},  // scaled away
		{0, 0, false, false}, // asleep
		{2, 0, false, false},
		{2, 1, true, false}, // uninstalled
	} {
		if got := Leaves(c.ordinal, c.replicas, c.deleted); got != c.want {
			t.Errorf("ordinal %d of %d, deleted %t: leaves %t", c.ordinal, c.replicas, c.deleted, got)
		}
	}
}

func TestOrdinal(t *testing.T) {
	if n, err := Ordinal("a-b-12"); n != 12 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	for _, pod := range []string{"", "a", "a-", "-1", "a-b", "a-1x"} {
		if n, err := Ordinal(pod); err == nil {
			t.Errorf("%q has the ordinal %d", pod, n)
		}
	}
}

func TestVolume(t *testing.T) {
	v := Volume(t.TempDir())
	check := func(want Origin, wantLeaving bool) {
		t.Helper()
		origin, leaving, err := v.Origin()
		if err != nil || origin != want || leaving != wantLeaving {
			t.Errorf("%q, leaving %t, %v; want %q, %t", origin, leaving, err, want, wantLeaving)
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(Empty, false)
	must(v.SetOrigin(Joined))
	check(Joined, false)
	must(v.SetLeaving())
	check(Joined, true)
	must(v.Stay())
	check(Joined, false)
	must(v.SetLeaving())
	must(os.MkdirAll(filepath.Join(string(v), "etcd", "member"), 0o700))
	must(v.Wipe())
	check(Empty, false)
	if entries, err := os.ReadDir(string(v)); err != nil || len(entries) > 0 {
		t.Errorf("after Wipe: %v, %v", entries, err)
	}
	must(v.write(originFile, "nonsense"))
	if _, _, err := v.Origin(); err == nil {
		t.Error("an unknown origin is no error")
	}
}
