package cluster

import (
	"slices"
	"testing"
)

// After a restore, members that had joined must not ask others that do not know them, and
// the list of founders must not have members that are gone.
func TestRefound(t *testing.T) {
	c := &Cluster{
		Recovering: "apiserver-0",
		Founders:   []Member{{Name: "apiserver-0"}, {Name: "apiserver-1"}},
		Members:    []Member{{Name: "apiserver-0"}, {Name: "apiserver-2", Join: "10.89.1.1:6444"}, {Name: "apiserver-3", Join: "10.89.1.1:6444", Client: true}},
	}
	c.Refound()
	voters := []Member{{Name: "apiserver-0"}, {Name: "apiserver-2"}}
	if !slices.Equal(c.Founders, voters) || !slices.Equal(c.Voters(), voters) {
		t.Errorf("founders %v, voters %v", c.Founders, c.Voters())
	}
	if c.Recovering != "" {
		t.Errorf("%s is still recovering", c.Recovering)
	}
	if m, _ := c.Member("apiserver-3"); m.Join == "" || !m.Client {
		t.Errorf("the client has become %v", m)
	}
}
