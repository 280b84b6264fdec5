// Package image makes sure that a container's image is on the node: according to its pull
// policy, with the pod's pull secrets, a few images at a time, and with a back-off after
// failures. It also removes unused images when the disk fills up.
//
// It must never log or report a password.
package image

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	corev1 "k8s.io/api/core/v1"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"keelson.dev/services/node/internal/cri"
	"keelson.dev/services/node/internal/event"
)

// Waiting reasons of a container whose image is missing.
const (
	ReasonPull    = "ErrImagePull"
	ReasonBackOff = "ImagePullBackOff"
	ReasonNever   = "ErrImageNeverPull"
	ReasonName    = "InvalidImageName"
	ReasonInspect = "ImageInspectError"
)

// The delays between attempts to pull an image after failures. They are the kubelet's.
const (
	backoffFirst = 10 * time.Second
	backoffMost  = 5 * time.Minute
)

// Error explains why an image is not available.
type Error struct {
	Reason, Message string
	// Retry is when the pull may be attempted again; zero means no particular time.
	Retry time.Time
}

func (e *Error) Error() string { return e.Reason + ": " + e.Message }

// Runtime is the part of the CRI client that the puller uses.
type Runtime interface {
	ImageStatus(ctx context.Context, image string) (*runtimev1.Image, error)
	PullImage(ctx context.Context, image string, auth *runtimev1.AuthConfig, sandbox *runtimev1.PodSandboxConfig) (string, error)
}

// Puller pulls images. It is safe for concurrent use.
type Puller struct {
	runtime Runtime
	events  *event.Recorder
	now     func() time.Time
	slots   chan struct{}

	mu       sync.Mutex
	pulling  map[string]chan struct{}
	users    map[string]int
	failures map[string]*failure
}

type failure struct {
	until   time.Time
	delay   time.Duration
	message string
	at      time.Time
}

// NewPuller returns a puller that pulls at most parallel images at a time.
func NewPuller(runtime Runtime, events *event.Recorder, parallel int) *Puller {
	return &Puller{
		runtime: runtime, events: events, now: time.Now, slots: make(chan struct{}, parallel),
		pulling: map[string]chan struct{}{}, users: map[string]int{}, failures: map[string]*failure{},
	}
}

// WithTag returns an image's name with the default tag if it has neither tag nor digest. It
// returns an error if the name is invalid.
func WithTag(image string) (string, error) {
	if image == "" || strings.TrimSpace(image) != image || strings.ContainsAny(image, " \t\n") {
		return "", fmt.Errorf("couldn't parse image name %q: invalid reference format", image)
	}
	repo := image
	if before, digest, ok := strings.Cut(image, "@"); ok {
		if !strings.Contains(digest, ":") {
			return "", fmt.Errorf("couldn't parse image name %q: invalid reference format", image)
		}
		repo = before
	}
	name := repo
	tagged := false
	if i := strings.LastIndexByte(repo, ':'); i > strings.LastIndexByte(repo, '/') {
		name, tagged = repo[:i], true
		if repo[i+1:] == "" {
			return "", fmt.Errorf("couldn't parse image name %q: invalid reference format", image)
		}
	}
	path := name
	if host, rest, ok := strings.Cut(name, "/"); ok && (strings.ContainsAny(host, ".:") || host == "localhost") {
		path = rest
	}
	if path == "" || path != strings.ToLower(path) {
		return "", fmt.Errorf("couldn't parse image name %q: invalid reference format: repository name (%s) must be lowercase", image, path)
	}
	if tagged || repo != image {
		return image, nil
	}
	return image + ":latest", nil
}

// Ensure returns the runtime's image for a container, and pulls it if the pull policy
// requires that. If the image is not available, the error is an *Error.
func (p *Puller) Ensure(ctx context.Context, pod *corev1.Pod, c *corev1.Container, secrets []*corev1.Secret, sandbox *runtimev1.PodSandboxConfig) (*runtimev1.Image, error) {
	name, err := WithTag(c.Image)
	if err != nil {
		message := fmt.Sprintf("Failed to apply default image tag %q: %v", c.Image, err)
		p.events.Pod(pod, c.Name, corev1.EventTypeWarning, "InspectFailed", "%s", message)
		return nil, &Error{Reason: ReasonName, Message: message}
	}
	if err := ctx.Err(); err != nil {
		return nil, err // a cancelled caller must not take the lock even if it is free
	}
	unlock, err := p.lock(ctx, name)
	if err != nil {
		return nil, err
	}
	defer unlock()
	present, err := p.runtime.ImageStatus(ctx, name)
	if err != nil {
		return nil, &Error{Reason: ReasonInspect, Message: fmt.Sprintf("Failed to inspect image %q: %s", c.Image, cri.Message(err))}
	}
	if present != nil && c.ImagePullPolicy != corev1.PullAlways {
		p.events.Pod(pod, c.Name, corev1.EventTypeNormal, event.Pulled, "Container image %q already present on machine", c.Image)
		return present, nil
	}
	if c.ImagePullPolicy == corev1.PullNever {
		message := fmt.Sprintf("Container image %q is not present with pull policy of Never", c.Image)
		p.events.Pod(pod, c.Name, corev1.EventTypeWarning, event.ErrImageNeverPull, "%s", message)
		return nil, &Error{Reason: ReasonNever, Message: message, Retry: p.now().Add(backoffFirst)}
	}
	key := string(pod.UID) + "_" + name
	if f := p.failed(key); f != nil {
		p.events.Pod(pod, c.Name, corev1.EventTypeNormal, event.BackOff, "Back-off pulling image %q", c.Image)
		return nil, &Error{Reason: ReasonBackOff, Message: fmt.Sprintf("Back-off pulling image %q: %s: %s", c.Image, ReasonPull, f.message), Retry: f.until}
	}
	return p.pull(ctx, pod, c, name, key, secrets, sandbox)
}

func (p *Puller) pull(ctx context.Context, pod *corev1.Pod, c *corev1.Container, name, key string, secrets []*corev1.Secret, sandbox *runtimev1.PodSandboxConfig) (*runtimev1.Image, error) {
	ctx, span := otel.Tracer("keelson.dev/node").Start(ctx, "pull image "+c.Image)
	defer span.End()
	span.SetAttributes(attribute.String("image", c.Image), attribute.String("container", c.Name))
	p.events.Pod(pod, c.Name, corev1.EventTypeNormal, event.Pulling, "Pulling image %q", c.Image)
	asked := p.now()
	select {
	case p.slots <- struct{}{}:
		defer func() { <-p.slots }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	begun := p.now()
	auths, credErr := Credentials(name, secrets)
	if len(auths) == 0 {
		auths = []*runtimev1.AuthConfig{nil}
	}
	var ref string
	var err error
	for _, auth := range auths {
		if ref, err = p.runtime.PullImage(ctx, name, auth, sandbox); err == nil {
			break
		}
	}
	var pulled *runtimev1.Image
	if err == nil {
		if pulled, err = p.runtime.ImageStatus(ctx, ref); err == nil && pulled == nil {
			pulled, err = p.runtime.ImageStatus(ctx, name)
		}
		if err == nil && pulled == nil {
			err = fmt.Errorf("image %q was pulled as %q, but the runtime does not have it", name, ref)
		}
	}
	if err != nil && ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		message := fmt.Sprintf("failed to pull image %q: %s", c.Image, cri.Message(err))
		if credErr != nil {
			message += "; " + credErr.Error()
		}
		span.SetStatus(codes.Error, message)
		until := p.fail(key, message)
		p.events.Pod(pod, c.Name, corev1.EventTypeWarning, event.Failed, "Failed to pull image %q: %s", c.Image, cri.Message(err))
		p.events.Pod(pod, c.Name, corev1.EventTypeWarning, event.Failed, "Error: %s", ReasonPull)
		return nil, &Error{Reason: ReasonPull, Message: message, Retry: until}
	}
	p.succeed(key)
	done := p.now()
	p.events.Pod(pod, c.Name, corev1.EventTypeNormal, event.Pulled, "Successfully pulled image %q in %s (%s including waiting). Image size: %d bytes.",
		c.Image, done.Sub(begun).Truncate(time.Millisecond), done.Sub(asked).Truncate(time.Millisecond), pulled.Size)
	return pulled, nil
}

// lock serializes the callers that deal with the same image.
func (p *Puller) lock(ctx context.Context, name string) (unlock func(), err error) {
	p.mu.Lock()
	turn := p.pulling[name]
	if turn == nil {
		turn = make(chan struct{}, 1)
		p.pulling[name] = turn
	}
	p.users[name]++
	p.mu.Unlock()
	leave := func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.users[name]--; p.users[name] == 0 {
			delete(p.users, name)
			delete(p.pulling, name)
		}
	}
	select {
	case turn <- struct{}{}:
		return func() { <-turn; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}

// failed returns the failure that a pull is backing off from, or nil.
func (p *Puller) failed(key string) *failure {
	p.mu.Lock()
	defer p.mu.Unlock()
	f := p.failures[key]
	if f == nil || !p.now().Before(f.until) {
		return nil
	}
	return f
}

func (p *Puller) fail(key, message string) time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	for k, f := range p.failures {
		if now.Sub(f.at) > 2*backoffMost {
			delete(p.failures, k)
		}
	}
	f := p.failures[key]
	if f == nil {
		f = &failure{}
		p.failures[key] = f
	}
	f.delay = min(max(2*f.delay, backoffFirst), backoffMost)
	f.until, f.message, f.at = now.Add(f.delay), message, now
	return f.until
}

func (p *Puller) succeed(key string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.failures, key)
}
