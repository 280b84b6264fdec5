package raft

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"

	"keelson.dev/services/apiserver/internal/store"
)

// membership is a Membership for tests.
type membership struct {
	mu    sync.Mutex
	names []string
	err   error
	asked int
}

func (m *membership) Names() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.names)
}

func (m *membership) Gone(_ context.Context, name string) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.asked++
	return !slices.Contains(m.names, name), m.err
}

func (m *membership) set(err error, names ...string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.names, m.err, m.asked = names, err, 0
}

// TestTheStoreFollowsAMembership removes members that the authority does not name any more,
// including the leader, but none for which that is not certain.
func TestTheStoreFollowsAMembership(t *testing.T) {
	m := &membership{names: []string{"a", "b", "c", "d"}}
	c := newCluster(t, 4, func(cfg *Config) { cfg.Follow = m })
	leader, followers := c.leader()
	want := map[string]string{"/k": "v"}
	c.put(leader, "/k", "v")
	goes := followers[0].cfg.Name
	rest := slices.DeleteFunc([]string{"a", "b", "c", "d"}, func(n string) bool { return n == goes })
	m.set(errors.New("the authority does not answer"), rest...)
	eventually(t, "the membership has been queried", func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.asked > 2
	})
	if n := len(leader.voters()); n != 4 {
		t.Fatalf("a member was removed although the authority did not answer: %d are left", n)
	}
	gone := func(name string) func() bool {
		return func() bool {
			leader, _ := c.leader()
			return !slices.ContainsFunc(leader.Status().Members, func(m Member) bool { return m.Name == name })
		}
	}
	m.set(nil, rest...)
	eventually(t, goes+" is removed", gone(goes))
	c.stop(goes)
	leads := leader.cfg.Name
	rest = slices.DeleteFunc(rest, func(n string) bool { return n == leads })
	m.set(nil, rest...)
	eventually(t, leads+", which led, is removed", gone(leads))
	c.stop(leads)
	holds(t, c.members[rest[0]], want)
	var s store.Store = c.members[rest[1]]
	c.put(s, "/after", "x")
}
