package cluster

import (
	"slices"
	"testing"
)

// A restored member that had joined asked others who did not know it, and its founders
// were told of one that was gone.
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
		t.Errorf("the client is %v now", m)
	}
}
