package process

import (
	"slices"
	"testing"

	"keelson.dev/tools/keel/internal/cluster"
)

// Each of two balancers is asked by what it alone serves: their address is served
// by the other one while it starts.
func TestEachBalancerIsAskedItself(t *testing.T) {
	specs := balancers(&cluster.Cluster{Home: t.TempDir(), Members: []cluster.Member{{Name: "apiserver-0", IP: "192.0.2.1"}}}, "/bin")
	for i, s := range specs {
		at := slices.Index(s.Args, "--share")
		if at < 0 || s.Args[at+1] != s.Socket || s.Health != "" {
			t.Errorf("%s is asked at %q: %v", s.Name, s.Socket, s.Args)
		}
		if other := specs[1-i].Socket; other == s.Socket {
			t.Errorf("both are asked at %s", other)
		}
	}
}
