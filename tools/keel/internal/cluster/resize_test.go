package cluster

import (
	"slices"
	"testing"
)

// Nodes whose removal has begun are remembered until it is complete, however often it is
// requested.
func TestNodesThatLeaveAreRemembered(t *testing.T) {
	home := t.TempDir()
	c := &Cluster{Home: home, ID: "abc123", Subnet: 7}
	c.resize(4)
	for range 2 {
		c.resize(2)
	}
	if err := c.Save(); err != nil {
		t.Fatal(err)
	}
	c, err := Load(home)
	if err != nil || len(c.Nodes) != 2 || len(c.Leaving) != 2 || c.Leaving[0].Name != "node-3" || c.Leaving[1].Index() != 2 {
		t.Fatalf("%+v, %v", c, err)
	}
	c.resize(3)
	c.resize(1)
	var left []string
	for _, n := range c.Leaving {
		left = append(left, n.Name)
	}
	if !slices.Equal(left, []string{"node-3", "node-2", "node-1"}) {
		t.Errorf("leaving nodes are %v", left)
	}
}
