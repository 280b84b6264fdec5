package command

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"keelson.dev/tools/keel/internal/cluster"
	"keelson.dev/tools/keel/internal/supervise"
)

func TestLeavingIsRemembered(t *testing.T) {
	c := home(t, "00000a", func(c *cluster.Cluster) {
		c.Members = []cluster.Member{{Name: "apiserver-0"}, {Name: "apiserver-1"}}
	})
	for _, leaving := range []bool{true, false} {
		if err := c.SetLeaving("apiserver-1", leaving); err != nil {
			t.Fatal(err)
		}
		again, err := cluster.Load(c.Home)
		if err != nil {
			t.Fatal(err)
		}
		if a, _ := again.Member("apiserver-0"); a.Leaving {
			t.Error("another member is leaving")
		}
		if b, _ := again.Member("apiserver-1"); b.Leaving != leaving {
			t.Errorf("leaving is %t, want %t", b.Leaving, leaving)
		}
	}
}

func TestInterruptedRemovalsAreFinished(t *testing.T) {
	c := home(t, "00000a", func(c *cluster.Cluster) {
		c.Members = []cluster.Member{
			{Name: "apiserver-0", Leaving: true}, {Name: "apiserver-1", Leaving: true}, {Name: "apiserver-2"}, {Name: "apiserver-3", Leaving: true},
		}
	})
	down := errors.New("no answer")
	_, err := finishLeaving(c, func(string, ...any) {}, func(name string) (bool, error) {
		if name == "apiserver-3" {
			return false, down
		}
		return name == "apiserver-1", nil
	})
	if !errors.Is(err, down) {
		t.Errorf("error is %v, want %v", err, down)
	}
	again, err := cluster.Load(c.Home)
	want := []cluster.Member{{Name: "apiserver-1"}, {Name: "apiserver-2"}, {Name: "apiserver-3", Leaving: true}}
	if err != nil || !slices.Equal(again.Members, want) {
		t.Errorf("members are %v, want %v: %v", again.Members, want, err)
	}
}

// The error of a failed removal explains what to do, whatever the cause.
func TestFailedRemovalsExplainWhatToDo(t *testing.T) {
	for code, want := range map[codes.Code]string{
		codes.FailedPrecondition: "see `keel member list`",
		codes.DeadlineExceeded:   "`keel member recover --from NAME`",
		codes.Unavailable:        "then repeat the command",
	} {
		if got := wayOut(status.Error(code, "no leader"), "apiserver-1"); !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", code, got, want)
		}
	}
}

func TestHints(t *testing.T) {
	said := errors.New("no; `keel up` does")
	for _, row := range []struct {
		err  error
		want string
	}{
		{said, "no; `keel up` does"},
		{usageError{errors.New("--x: want 1")}, "--x: want 1"},
		{fmt.Errorf("status: %w", supervise.ErrDown), "status: the cluster is not running; `keel up` helps"},
	} {
		if got := hinted(row.err, "`keel up` helps"); got.Error() != row.want || !errors.Is(got, row.err) {
			t.Errorf("%q, want %q", got, row.want)
		}
	}
}

// No apiserver may start on a disk that is being recovered.
func TestUpRefusesAnInterruptedRecovery(t *testing.T) {
	c := home(t, "00000a", func(c *cluster.Cluster) {
		c.Members = []cluster.Member{{Name: "apiserver-0"}, {Name: "apiserver-1"}}
		c.Recovering = "apiserver-1"
	})
	if err := unfit(c); err == nil || !strings.Contains(err.Error(), "`keel member recover --from apiserver-1 --home "+c.Home+"`") {
		t.Error(err)
	}
	c.Refound()
	if err := unfit(c); err != nil {
		t.Error(err)
	}
}
