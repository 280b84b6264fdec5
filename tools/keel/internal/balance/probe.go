package balance

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"time"
)

const (
	// probeEvery is the interval between probes of a backend. While a stopping backend is not
	// ready but still serving, it is probed at least twice.
	probeEvery = 200 * time.Millisecond
	// probeTime bounds one probe.
	probeTime = time.Second
)

// Probe returns nil if the backend at an address should get connections.
type Probe func(ctx context.Context, address string) error

// Ready returns a probe that requests /readyz from a server with a certificate of the CA. done
// closes the probe's connections.
func Ready(roots *x509.CertPool) (probe Probe, done func()) {
	transport := &http.Transport{
		TLSClientConfig:     &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		ForceAttemptHTTP2:   true,
		TLSHandshakeTimeout: probeTime,
		IdleConnTimeout:     time.Minute,
	}
	client := &http.Client{Transport: transport, Timeout: probeTime}
	return func(ctx context.Context, address string) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+address+"/readyz", nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("/readyz returned %s", resp.Status)
		}
		return nil
	}, transport.CloseIdleConnections
}

// watch probes the backend until ctx ends.
func (b *backend) watch(ctx context.Context, probe Probe) {
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	for {
		err := probe(ctx, b.address)
		if ctx.Err() != nil {
			return
		}
		if was := b.unready.Swap(err != nil); was != (err != nil) {
			slog.InfoContext(ctx, "the readiness of a backend changed", "address", b.address, "ready", err == nil, "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
