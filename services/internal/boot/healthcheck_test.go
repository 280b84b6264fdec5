package boot

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

// TestHealthcheck checks that the exit code reports whether the program at the address is ready,
// however the address is given, and the service itself is not started.
func TestHealthcheck(t *testing.T) {
	well := true
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/readyz" || !well {
			http.Error(w, "[-]start failed: not yet", http.StatusInternalServerError)
		}
	})
	tcp := httptest.NewServer(handler)
	defer tcp.Close()
	address := strings.TrimPrefix(tcp.URL, "http://")
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "ops")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	local := &httptest.Server{Listener: listener, Config: &http.Server{Handler: handler}}
	local.Start()
	defer local.Close()
	const closed = "127.0.0.1:1" // one that was free a moment ago may be another test's

	call := func(args ...string) (int, string) {
		var out strings.Builder
		code := Execute(context.Background(), "test", append([]string{"healthcheck"}, args...), &out, func(*pflag.FlagSet) Run {
			t.Error("the service was built")
			return nil
		})
		return code, out.String()
	}
	for _, c := range []struct {
		name, flag, environment string
		well                    bool
		code                    int
		says                    string
	}{
		{"ready", address, "", true, 0, ""},
		{"from the environment", "", address, true, 0, ""},
		{"listening everywhere", "", "0.0.0.0:" + port, true, 0, ""},
		{"no host", "", ":" + port, true, 0, ""},
		{"socket", "unix://" + socket, "", true, 0, ""},
		{"not ready", address, "", false, 1, "[-]start failed"},
		{"not listening", closed, "", true, 1, "refused"},
		{"unknown port", "", "", true, 1, "--ops-address"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv(opsAddressVariable, c.environment)
			well = c.well
			var args []string
			if c.flag != "" {
				args = []string{"--ops-address", c.flag}
			}
			code, said := call(args...)
			if code != c.code || !strings.Contains(said, c.says) {
				t.Errorf("code %d, said %q; want %d and %q", code, said, c.code, c.says)
			}
		})
	}
	if code, _ := call("--no-such-flag"); code != 2 {
		t.Errorf("a wrong call ends with %d, want 2", code)
	}
}
