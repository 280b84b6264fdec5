package boot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/pflag"
)

// healthcheck is the first argument that makes a program ask a running process of the same
// service whether it is ready. Images that contain nothing but the program have no other
// way to be probed.
const healthcheck = "healthcheck"

// probePatience bounds a whole health check.
const probePatience = 5 * time.Second

// probe requests /readyz from the operations listener that the flags or the environment
// name. It returns the exit code: 0 if the service is ready, 1 if it is not or does not
// answer, 2 after a usage error.
func probe(ctx context.Context, name string, args []string, stderr io.Writer) int {
	fs := pflag.NewFlagSet(name+" "+healthcheck, pflag.ContinueOnError)
	fs.SetOutput(io.Discard)
	var address string
	opsAddress(fs, &address)
	switch err := fs.Parse(args); {
	case errors.Is(err, pflag.ErrHelp):
		fmt.Fprintf(stderr, "usage: %s %s [flags]\n\n%s", name, healthcheck, fs.FlagUsages())
		return 0
	case err != nil:
		return refuse(stderr, name, err)
	}
	ctx, cancel := context.WithTimeout(ctx, probePatience)
	defer cancel()
	if err := ready(ctx, address); err != nil {
		fmt.Fprintf(stderr, "%s: %v\n", name, err)
		return 1
	}
	return 0
}

// ready requests /readyz from the operations listener at address. The error contains the
// checks that failed.
func ready(ctx context.Context, address string) error {
	network, target := "tcp", address
	if path, ok := strings.CutPrefix(address, "unix://"); ok {
		network, target = "unix", path
	} else if host, port, err := net.SplitHostPort(address); err != nil || port == "0" {
		return fmt.Errorf("--ops-address %q: want the host:port or unix:///path of the program to ask", address)
	} else if ip, err := netip.ParseAddr(host); host == "" || err == nil && ip.IsUnspecified() {
		target = net.JoinHostPort("localhost", port)
	}
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, target)
		},
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+healthcheck+"/readyz", nil)
	if err != nil {
		return err
	}
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return fmt.Errorf("not ready: %w", err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 16<<10))
	if err != nil {
		return fmt.Errorf("not ready: %w", err)
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("not ready:\n%s", body)
	}
	return nil
}
