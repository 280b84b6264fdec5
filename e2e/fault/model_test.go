package fault

import (
	"strings"
	"testing"
	"time"
)

// timed sets the times of operations that follow each other.
func timed(ops ...Op) []Op {
	for i := range ops {
		if ops[i].Kind == "" {
			ops[i].Kind = ConfigMaps
		}
		if ops[i].Name == "" && ops[i].Action != List {
			ops[i].Name = "a"
		}
		if ops[i].Outcome == "" {
			ops[i].Outcome = Done
		}
		ops[i].Client = i
		ops[i].Call += time.Duration(10*i+1) * time.Second
		ops[i].Return += time.Duration(10*i+9) * time.Second
	}
	return ops
}

func put(rv int64, kind, value string) Event {
	return Event{RV: rv, Type: kind, Name: "a", Value: value, Deleted: kind == "Deleted", Seen: 500 * time.Second}
}

// problems returns all problems that the checks find in a history of ConfigMaps.
func problems(ops []Op, watches ...*Watched) string {
	events, wrong := merge(watches)
	wrong = append(wrong, accounted(ConfigMaps, ops, events)...)
	wrong = append(wrong, listed(ConfigMaps, ops, events)...)
	wrong = append(wrong, inTime(ConfigMaps, ops)...)
	wrong = append(wrong, linearizable(ops, map[string][]Event{ConfigMaps: events}, time.Minute)...)
	return strings.Join(wrong, "\n")
}

func TestChecks(t *testing.T) {
	create := Op{Action: Create, Value: "x", RV: 5}
	update := Op{Action: Update, Value: "y", Expect: 5, RV: 7}
	both := []Event{put(5, "Added", "x"), put(7, "Modified", "y")}
	three := append(both[:2:2], put(9, "Modified", "z"))
	deleted := append(both[:2:2], put(8, "Deleted", "y"))
	unknown := func(op Op) Op { op.Outcome, op.RV = Unknown, 0; return op }
	seen := func(events []Event) *Watched { return &Watched{Name: "w", Kind: ConfigMaps, Events: events, From: 4} }
	for name, row := range map[string]struct {
		ops     []Op
		watches []*Watched
		want    string // part of the expected problem; "" for none
	}{
		"sound": {
			timed(create, Op{Action: Get, RV: 5, Read: "x"}, update, Op{Action: Get, RV: 7, Read: "y"},
				Op{Action: Create, Value: "z", Outcome: Exists}, Op{Action: Update, Value: "z", Expect: 5, Outcome: Conflict},
				Op{Action: List, RV: 7, Items: map[string]Version{"a": {"y", 7}}}, Op{Action: Delete}, Op{Action: Get, Outcome: NotFound}),
			[]*Watched{seen(deleted), seen(deleted)}, "",
		},
		"lost write": {
			timed(create, update, Op{Action: Get, RV: 5, Read: "x"}), []*Watched{seen(both[:1])}, "an acknowledged write is lost",
		},
		"stale read": {
			timed(create, update, Op{Action: Get, RV: 5, Read: "x"}), []*Watched{seen(both)}, "not linearizable",
		},
		"stale absence": {
			timed(create, Op{Action: Get, Outcome: NotFound}), []*Watched{seen(both[:1])}, "not linearizable",
		},
		"stale list": {
			timed(create, update, Op{Action: List, RV: 5, Items: map[string]Version{"a": {"x", 5}}}), []*Watched{seen(both)}, "after a client had seen 7",
		},
		"torn list": {
			timed(create, update, Op{Action: List, RV: 7, Items: map[string]Version{"a": {"x", 5}}}), []*Watched{seen(both)}, "a list at 7",
		},
		"incomplete list": {
			timed(create, Op{Action: List, RV: 5, Items: map[string]Version{}}), []*Watched{seen(both[:1])}, "a list at 5",
		},
		"double success": {
			timed(create, update, Op{Action: Update, Value: "z", Expect: 5, RV: 9}), []*Watched{seen(three)}, "not linearizable",
		},
		"two creates": {
			timed(create, Op{Action: Create, Value: "y", RV: 7}), []*Watched{seen(both)}, "not linearizable",
		},
		"conflict without another write": {
			timed(create, Op{Action: Update, Value: "y", Expect: 5, Outcome: Conflict}), []*Watched{seen(both[:1])}, "not linearizable",
		},
		"refused and done": {
			timed(create, Op{Action: Update, Value: "y", Expect: 5, Outcome: Refused}), []*Watched{seen(both)}, "a refused write took effect",
		},
		"conflict and done": {
			timed(create, Op{Action: Update, Value: "y", Expect: 5, Outcome: Conflict}), []*Watched{seen(both)}, "a refused write took effect",
		},
		"another revision": {
			timed(create, Op{Action: Update, Value: "y", Expect: 5, RV: 6}), []*Watched{seen(both)}, "acknowledged at 6",
		},
		"unknown and done": {
			timed(create, unknown(update), Op{Action: Get, RV: 7, Read: "y"}), []*Watched{seen(both)}, "",
		},
		"unknown and not done": {
			timed(create, unknown(update), Op{Action: Get, RV: 5, Read: "x"}), []*Watched{seen(both[:1])}, "",
		},
		"unknown, then both": {
			timed(create, unknown(update), Op{Action: Get, RV: 7, Read: "y"}, Op{Action: Get, RV: 5, Read: "x"}), []*Watched{seen(both)}, "not linearizable",
		},
		"unknown and done twice": {
			timed(create, unknown(update)), []*Watched{seen(append(both[:2:2], put(9, "Modified", "y")))}, "2 times",
		},
		"unknown delete done": {
			timed(create, update, unknown(Op{Action: Delete}), Op{Action: Get, Outcome: NotFound}), []*Watched{seen(deleted)}, "",
		},
		"unknown delete of what others deleted": {
			timed(create, update, Op{Action: Delete, Expect: 7}, unknown(Op{Action: Delete, Expect: 7})), []*Watched{seen(deleted)}, "",
		},
		"delete without a deletion": {
			timed(create, update, Op{Action: Delete}), []*Watched{seen(both)}, "was deleted 0 times",
		},
		"a deletion that no client made": {
			timed(create, update), []*Watched{seen(deleted)}, "was deleted 1 times",
		},
		"deleted in another version": {
			timed(create, update, Op{Action: Delete, Expect: 5}), []*Watched{seen(deleted)}, "not linearizable",
		},
		"revision goes back": {
			timed(create, Op{Action: Create, Name: "b", Value: "z", RV: 4}), []*Watched{seen(both[:1])}, "after a client had seen 5",
		},
		"watch misses an event": {
			timed(create, update), []*Watched{seen(both), seen(both[1:])}, "missed event 5",
		},
		"watch repeats an event": {
			timed(create, update), []*Watched{seen(append(both[:2:2], both[1]))}, "came after revision 7",
		},
		"watches differ": {
			timed(create, update), []*Watched{seen(both), seen([]Event{both[0], put(7, "Modified", "x")})}, "another watch saw",
		},
		"watch disorders": {
			timed(create, update), []*Watched{seen([]Event{both[1], both[0]})}, "came after revision 7",
		},
		"watch calls it something else": {
			timed(create, update), []*Watched{seen([]Event{both[0], put(7, "Added", "y")})}, "want Modified",
		},
		"a gap that was reported": {
			timed(create, update), []*Watched{seen(both), {Name: "w", Kind: ConfigMaps, Events: both[1:], From: 4, Gaps: [][2]int64{{4, 6}}}}, "",
		},
	} {
		t.Run(name, func(t *testing.T) {
			got := problems(row.ops, row.watches...)
			if (got == "") != (row.want == "") || !strings.Contains(got, row.want) {
				t.Errorf("got %q, want %q", got, row.want)
			}
		})
	}
}

func TestPlanDependsOnItsSeedAlone(t *testing.T) {
	same, other := 0, 0
	a, b, c := NewPlan(1), NewPlan(1), NewPlan(2)
	kinds := map[Kind]bool{}
	for range 200 {
		x, y, z := a.Step(), b.Step(), c.Step()
		if len(x) == 0 || len(x) > 2 || len(x) != len(y) {
			t.Fatalf("%v and %v", x, y)
		}
		for i := range x {
			kinds[x[i].Kind] = true
			if x[i] != y[i] {
				t.Fatalf("%v and %v", x[i], y[i])
			}
		}
		if x[0] == z[0] {
			same++
		} else {
			other++
		}
	}
	if same > other {
		t.Errorf("%d steps are the same with another seed", same)
	}
	if len(kinds) != len(Kinds) {
		t.Errorf("%d kinds were chosen, want %d", len(kinds), len(Kinds))
	}
}
