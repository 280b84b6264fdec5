package main

import (
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

// A member that joins tells the others a name that outlives its address, if it has one.
func TestWhereOthersReachAMember(t *testing.T) {
	for name, c := range map[string]struct {
		flags []string
		want  string // of the peer port; empty is an error
	}{
		"its listener":  {[]string{"--listen-peer=10.0.0.1:6445", "--etcd-listen-peer=10.0.0.1:2380", "--peer-host=a-1"}, "10.0.0.1:6445"},
		"its address":   {[]string{"--advertise-address=10.0.0.2"}, "10.0.0.2:6445"},
		"its peer host": {[]string{"--advertise-address=10.0.0.2", "--peer-host=a-1.a-members"}, "a-1.a-members:6445"},
		"no address":    {nil, ""},
	} {
		fs := pflag.NewFlagSet("apiserver", pflag.ContinueOnError)
		o := newOptions(fs)
		if err := fs.Parse(append([]string{"--join=a:6444"}, c.flags...)); err != nil {
			t.Fatal(err)
		}
		cfg := &config{options: o}
		err := cfg.setAddresses()
		if err == nil {
			err = cfg.ownAddresses()
		}
		if c.want == "" {
			if err == nil || !strings.Contains(err.Error(), "--peer-host") {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if err != nil || cfg.PeerAddress != c.want || !strings.HasSuffix(cfg.EtcdAddress, ":2380") {
			t.Errorf("%s: %s, %s, %v", name, cfg.PeerAddress, cfg.EtcdAddress, err)
		}
	}
}
