package main

import (
	"errors"
	"io"
	"net"
	"testing"

	"github.com/spf13/pflag"
)

func TestSeveralAddressesAreOneListener(t *testing.T) {
	var all []net.Listener
	for _, ip := range []string{"127.0.0.1", "127.0.0.2"} {
		l, err := net.Listen("tcp", ip+":0")
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, l)
	}
	m := merge(all)
	for _, l := range all {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		s, err := m.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if s.LocalAddr().String() != l.Addr().String() {
			t.Errorf("accepted at %s, want %s", s.LocalAddr(), l.Addr())
		}
		s.Close()
		if _, err := io.ReadAll(c); err != nil {
			t.Error(err)
		}
		c.Close()
	}
	if m.Addr() != all[0].Addr() {
		t.Errorf("address %s, want the first", m.Addr())
	}
	_ = all[1].Close() // one ends: so do all
	if _, err := m.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accepted: %v", err)
	}
	if _, err := net.Dial("tcp", all[0].Addr().String()); err == nil {
		t.Error("the first goes on without the second")
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
}

func TestListenSaysWhatItCannot(t *testing.T) {
	for _, list := range []string{"127.0.0.1:0,nowhere", "127.0.0.1:0,127.0.0.2:0", "127.0.0.1:0,"} {
		if l, err := listenAll(list); err == nil {
			l.Close()
			t.Errorf("%q: no error", list)
		}
	}
}

func TestWhereAnApiserverListensByDefault(t *testing.T) {
	c := newCluster(t)
	for want, args := range map[string][]string{
		"127.0.0.1:6443 127.0.0.1:6444": {"--memory"},
		":6443 :6444":                   {"--data-dir", c.dir, "--join", "192.0.2.1:6444", "--member=false"},
		":1 127.0.0.1:2,192.0.2.1:2":    {"--memory", "--listen-https", ":1", "--listen-grpc", "127.0.0.1:2,192.0.2.1:2"},
	} {
		fs := pflag.NewFlagSet("apiserver", pflag.ContinueOnError)
		o := newOptions(fs)
		if err := fs.Parse(append([]string{"--identity", c.identity, "--service-account-key", c.key}, args...)); err != nil {
			t.Fatal(err)
		}
		cfg, err := o.config()
		if err != nil {
			t.Fatal(err)
		}
		if got := cfg.ListenREST + " " + cfg.ListenGRPC; got != want {
			t.Errorf("%v: %s, want %s", args, got, want)
		}
	}
}
