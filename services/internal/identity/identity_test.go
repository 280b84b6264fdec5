package identity_test

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"keelson.dev/services/internal/identity"
	"keelson.dev/services/internal/identity/identitytest"
)

// handshake connects a client to a server and returns what the server and the
// client saw of each other.
func handshake(t *testing.T, server, client *tls.Config) (seenByServer, seenByClient string, err error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	type result struct {
		name string
		err  error
	}
	done := make(chan result, 1)
	go func() {
		raw, err := l.Accept()
		if err != nil {
			done <- result{err: err}
			return
		}
		defer raw.Close()
		conn := tls.Server(raw, server)
		r := result{err: conn.Handshake()}
		if peers := conn.ConnectionState().PeerCertificates; len(peers) > 0 {
			r.name = peers[0].Subject.CommonName
		}
		if r.err == nil {
			_, r.err = conn.Write([]byte("x"))
		}
		done <- r
	}()
	conn, clientErr := tls.Dial("tcp", l.Addr().String(), client)
	if clientErr == nil {
		seenByClient = conn.ConnectionState().PeerCertificates[0].Subject.CommonName
		_, clientErr = io.ReadFull(conn, make([]byte, 1))
		conn.Close()
	}
	r := <-done
	return r.name, seenByClient, errors.Join(r.err, clientErr)
}

func TestMutualTLS(t *testing.T) {
	ca, other := identitytest.NewCA(t), identitytest.NewCA(t)
	server := ca.Source(t, "kube-apiserver")
	client := ca.Source(t, "system:kube-scheduler")
	stranger := other.Source(t, "stranger")

	tests := []struct {
		name           string
		server, client *tls.Config
		wantServer     string // what the server sees
		wantErr        string
	}{
		{"both known", server.ServerTLS(true), client.ClientTLS(), "system:kube-scheduler", ""},
		{"client without certificate, required", server.ServerTLS(true), &tls.Config{RootCAs: client.Current().Roots}, "", "certificate"},
		{"client without certificate, not required", server.ServerTLS(false), &tls.Config{RootCAs: client.Current().Roots}, "", ""},
		{"foreign client, required", server.ServerTLS(true), foreign(stranger, client), "", "certificate"},
		{"foreign client is only asked for", server.ServerTLS(false), foreign(stranger, client), "stranger", ""},
		{"foreign server", stranger.ServerTLS(true), client.ClientTLS(), "", "unknown authority"},
		{"wrong server name", server.ServerTLS(true), client.ClientTLS("elsewhere"), "", "elsewhere"},
		{"right server name", server.ServerTLS(true), client.ClientTLS("localhost"), "system:kube-scheduler", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			seen, _, err := handshake(t, tt.server, tt.client)
			if tt.wantErr == "" {
				if err != nil || seen != tt.wantServer {
					t.Fatalf("server saw %q, err %v; want %q", seen, err, tt.wantServer)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.wantErr) {
				t.Fatalf("err = %v, want one with %q", err, tt.wantErr)
			}
		})
	}
}

// foreign shows stranger's certificate but trusts the server that known trusts.
func foreign(stranger, known *identity.Source) *tls.Config {
	c := stranger.ClientTLS()
	c.RootCAs = known.Current().Roots
	return c
}

func TestRereadOnChange(t *testing.T) {
	ca := identitytest.NewCA(t)
	dir := t.TempDir()
	ca.Write(t, dir, "before")
	s, err := identity.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	server, client := s.ServerTLS(true), s.ClientTLS()
	ca.Write(t, dir, "after")
	byServer, byClient, err := handshake(t, server, client)
	if err != nil || byServer != "after" || byClient != "after" {
		t.Fatalf("server saw %q, client saw %q, err %v; want both to be the renewed identity", byServer, byClient, err)
	}

	// A renewal cut in half: a key that does not fit keeps the last good pair.
	good := s.Current()
	if err := os.WriteFile(filepath.Join(dir, identity.KeyFile), []byte("half a key"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := s.Current(); got != good {
		t.Fatal("a broken key replaced a good identity")
	}
	if _, _, err := handshake(t, server, client); err != nil {
		t.Fatal(err)
	}
	ca.Write(t, dir, "healed")
	if got := s.Current().Certificate.Leaf.Subject.CommonName; got != "healed" {
		t.Fatalf("after repair: %q", got)
	}
}

func TestUnchangedFilesAreNotReread(t *testing.T) {
	s := identitytest.NewCA(t).Source(t, "x")
	if first, second := s.Current(), s.Current(); first != second {
		t.Fatal("files were read again without a change")
	}
}

func TestLoadErrors(t *testing.T) {
	ca := identitytest.NewCA(t)
	for _, name := range []string{identity.CertFile, identity.KeyFile, identity.CAFile} {
		for _, broken := range []bool{false, true} {
			dir := t.TempDir()
			ca.Write(t, dir, "x")
			path := filepath.Join(dir, name)
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			if broken {
				if err := os.WriteFile(path, []byte("not pem"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := identity.Load(dir); err == nil || strings.Contains(err.Error(), "\n") {
				t.Errorf("%s broken=%v: err = %v, want one line", name, broken, err)
			}
		}
	}
}
