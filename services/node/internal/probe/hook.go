package probe

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Hook sends the request of an httpGet lifecycle hook. As in Kubernetes, any HTTP response
// is a success, whatever its status; only a request without a response fails. If a hook
// with scheme HTTPS reaches a server that speaks plain HTTP, the request is repeated over
// HTTP, and fallback is the host and port that it was sent to.
//
// Errors do not contain the URL, whose query may contain secrets.
func Hook(ctx context.Context, t Target, get *corev1.HTTPGetAction, timeout time.Duration) (fallback string, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	req, err := request(ctx, t, get, hookAgent)
	if err != nil {
		return "", err
	}
	client := httpClient(req.URL.Hostname())
	err = answered(client, req)
	if !errors.Is(err, http.ErrSchemeMismatch) {
		return "", err
	}
	plain := req.Clone(ctx)
	plain.URL.Scheme = "http"
	plain.Header.Del("Authorization") // do not send credentials in the clear
	if answered(client, plain) != nil {
		return "", err
	}
	return req.URL.Host, nil
}

// answered sends a request and returns an error if there is no response.
func answered(client *http.Client, req *http.Request) error {
	resp, err := client.Do(req)
	if err == nil {
		return resp.Body.Close()
	}
	var where *url.Error
	if errors.As(err, &where) {
		return where.Err
	}
	return err
}
