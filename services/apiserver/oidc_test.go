package main

import (
	"io"
	"net/http"
	"strings"
	"testing"
)

// TestOpenIDConfigurationNamesTheAdvertisedAddress asks under a foreign host name.
func TestOpenIDConfigurationNamesTheAdvertisedAddress(t *testing.T) {
	c := newCluster(t)
	at := c.startBoth(t, "--memory", "--advertise-address", "192.0.2.7")
	config := c.ca.Source(t, "kubernetes-admin", "system:masters").ClientTLS("localhost")
	web := &http.Client{Transport: &http.Transport{TLSClientConfig: config}}
	defer web.CloseIdleConnections()
	for _, host := range []string{"", "evil.example.com", "evil.example.com:443"} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+at.https+"/.well-known/openid-configuration", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Host = host
		resp, err := web.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%d %s, %v", resp.StatusCode, body, err)
		}
		if !strings.Contains(string(body), `"jwks_uri":"https://192.0.2.7:`) || strings.Contains(string(body), "evil") {
			t.Errorf("host %q: %s", host, body)
		}
	}
}
