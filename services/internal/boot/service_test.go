package boot_test

import (
	"bytes"
	"context"
	"errors"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"keelson.dev/services/internal/boot"
	"keelson.dev/services/internal/identity/identitytest"
)

// A service is not ready before its Run has registered all checks, although its
// operations listener already answers.
func TestNotReadyWhileStarting(t *testing.T) {
	dir := t.TempDir()
	identitytest.NewCA(t).Write(t, dir, "service")
	readiness := func(s *boot.Running) string {
		w := httptest.NewRecorder()
		s.Status.ReadyHandler().ServeHTTP(w, httptest.NewRequest("GET", "/readyz?verbose", nil))
		return w.Body.String()
	}
	var during, after string
	var out bytes.Buffer
	args := []string{"--identity", dir, "--apiserver", "127.0.0.1:1"}
	code := boot.Execute(t.Context(), "svc", args, &out, func(fs *pflag.FlagSet) boot.Run {
		flags := boot.ServiceFlags(fs)
		return func(ctx context.Context, g *boot.Group) error {
			s, err := boot.StartService(ctx, g, flags, boot.Program{Name: "svc"})
			if err != nil {
				return err
			}
			during = readiness(s)
			g.Go("work", func(context.Context) error {
				for after = readiness(s); strings.Contains(after, "[-]start"); after = readiness(s) {
				}
				return errors.New("seen")
			})
			return nil
		}
	})
	if code != 1 || !strings.Contains(during, "[-]start failed") || !strings.Contains(after, "[+]start ok") {
		t.Fatalf("code %d, %s\nwhile starting:\n%s\nafterwards:\n%s", code, out.String(), during, after)
	}
}
