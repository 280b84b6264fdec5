package tunnel

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	nodev1 "keelson.dev/proto/keelson/node/v1"
)

// maxUsage is the largest Usage that is accepted from a node, in bytes. One of 1,000 pods with
// ten containers each takes 600 KiB.
const maxUsage = 4 << 20

// Measure asks a node for its usage and that of its pods, measured at most maxAge ago, in whole
// seconds.
func (s *Server) Measure(ctx context.Context, node string, maxAge time.Duration) (*nodev1.Usage, error) {
	session, err := s.Open(ctx, node, &nodev1.Open{Target: &nodev1.Open_Measure{
		Measure: &nodev1.Measure{MaxAgeSeconds: int32(maxAge / time.Second)},
	}})
	if err != nil {
		return nil, err
	}
	defer session.Close()
	var raw bounded
	if err := session.Output(&raw, nil); err != nil {
		return nil, fmt.Errorf("node %s: usage: %w", node, err)
	}
	u := &nodev1.Usage{}
	if err := proto.Unmarshal(raw.Bytes(), u); err != nil {
		return nil, fmt.Errorf("node %s: usage: %w", node, err)
	}
	return u, nil
}

// bounded is a buffer of at most maxUsage bytes.
type bounded struct{ bytes.Buffer }

// Write implements io.Writer.
func (b *bounded) Write(p []byte) (int, error) {
	if b.Len()+len(p) > maxUsage {
		return 0, fmt.Errorf("more than %d bytes", maxUsage)
	}
	return b.Buffer.Write(p)
}
