package fault

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// restAPI accesses a kind over HTTPS, in JSON; each request goes to a random member. It does not
// retry, unlike client-go, which would hide the first response.
type restAPI[T object] struct {
	kindOf[T]
	http    *http.Client
	members []string // host:port
	rng     *rand.Rand
}

func (r restAPI[T]) via() string { return "rest" }

// call sends a request to a random member and decodes the response.
func (r restAPI[T]) call(ctx context.Context, method, name, content string, body, out any) error {
	return request(ctx, r.http, r.members[r.rng.IntN(len(r.members))], method,
		r.path+"/namespaces/"+namespace+"/"+r.kind+name, content, body, out)
}

// request sends one request to a member. If the response is a Status, it returns an error like
// client-go's.
func request(ctx context.Context, hc *http.Client, member, method, path, content string, body, out any) error {
	var data io.Reader
	if body != nil {
		raw, ok := body.([]byte)
		if !ok {
			var err error
			if raw, err = json.Marshal(body); err != nil {
				return err
			}
		}
		data = bytes.NewReader(raw)
	}
	req, err := http.NewRequestWithContext(ctx, method, "https://"+member+path, data)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", content)
	req.Header.Set("Accept", "application/json")
	resp, err := hc.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode >= 300 {
		s := &apierrors.StatusError{}
		if json.Unmarshal(answer, &s.ErrStatus) != nil || s.ErrStatus.Kind != "Status" {
			return fmt.Errorf("%s %s: %s: %.200s", method, path, resp.Status, answer)
		}
		return s
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(answer, out)
}

const (
	jsonType  = "application/json"
	mergeType = string(types.MergePatchType)
)

func (r restAPI[T]) get(ctx context.Context, name string) (Version, error) {
	obj := r.object("", "", 0)
	if err := r.call(ctx, http.MethodGet, "/"+name, jsonType, nil, obj); err != nil {
		return Version{}, err
	}
	return r.version(obj), nil
}

func (r restAPI[T]) list(ctx context.Context) (int64, map[string]Version, error) {
	var list struct {
		Metadata metav1.ListMeta
		Items    []T
	}
	if err := r.call(ctx, http.MethodGet, "", jsonType, nil, &list); err != nil {
		return 0, nil, err
	}
	items := make(map[string]Version, len(list.Items))
	for _, obj := range list.Items {
		items[obj.GetName()] = r.version(obj)
	}
	rv, err := strconv.ParseInt(list.Metadata.ResourceVersion, 10, 64)
	return rv, items, err
}

func (r restAPI[T]) create(ctx context.Context, name, value string) (int64, error) {
	obj := r.object("", "", 0)
	return written(obj, r.call(ctx, http.MethodPost, "", jsonType, r.object(name, value, 0), obj))
}

func (r restAPI[T]) update(ctx context.Context, name, value string, expect int64) (int64, error) {
	obj := r.object("", "", 0)
	return written(obj, r.call(ctx, http.MethodPut, "/"+name, jsonType, r.object(name, value, expect), obj))
}

func (r restAPI[T]) patch(ctx context.Context, name, value string) (int64, error) {
	obj := r.object("", "", 0)
	return written(obj, r.call(ctx, http.MethodPatch, "/"+name, mergeType, fmt.Appendf(nil, r.kindOf.patch, value), obj))
}

func (r restAPI[T]) remove(ctx context.Context, name string, expect int64) error {
	o := metav1.DeleteOptions{}
	if expect != 0 {
		rv := strconv.FormatInt(expect, 10)
		o.Preconditions = &metav1.Preconditions{ResourceVersion: &rv}
	}
	return r.call(ctx, http.MethodDelete, "/"+name, jsonType, &o, nil)
}

func (r restAPI[T]) batch(context.Context, []Op) ([]int64, []error) { return nil, nil }

// newHTTP returns an HTTP client for the members.
func newHTTP(p *pki) (*http.Client, error) {
	t, err := p.admin()
	if err != nil {
		return nil, err
	}
	return &http.Client{Transport: &http.Transport{
		TLSClientConfig: t, ForceAttemptHTTP2: true, MaxIdleConnsPerHost: 16,
		DialContext:     (&net.Dialer{Timeout: time.Second}).DialContext,
		HTTP2:           &http.HTTP2Config{SendPingTimeout: 5 * time.Second, PingTimeout: 5 * time.Second},
		IdleConnTimeout: time.Minute,
	}}, nil
}
