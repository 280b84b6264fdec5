package rpc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// transport is the stream below a [grpc.ServerStream], which itself reads with one bound for
// the whole server. gRPC's own type has these methods, but does not promise them: without
// them, calls are refused, and TestTransportStream fails.
type transport interface {
	ReadMessageHeader(header []byte) error
	Read(n int) (mem.BufferSlice, error)
	RecvCompress() string
	WriteStatus(st *status.Status) error
}

// messageHeader is the size in bytes of a message's compression flag and length.
const messageHeader = 5

// receive reads and decodes a message within the caller's limits.
func (c *call) receive(m any) error {
	if c.once && c.received {
		return io.EOF
	}
	var timer *time.Timer
	if c.caller.Class == Stranger {
		timer = c.hurry()
		defer timer.Stop()
	}
	var header [messageHeader]byte
	if err := c.transport.ReadMessageHeader(header[:]); err != nil {
		if errors.Is(err, io.EOF) && c.once {
			return status.Error(codes.Internal, "the call has no request message")
		}
		return receiveError(err)
	}
	size := binary.BigEndian.Uint32(header[1:])
	if int64(size) > int64(c.message) {
		return status.Errorf(codes.ResourceExhausted, "message of %d bytes: at most %d are allowed", size, c.message)
	}
	if header[0] > 1 {
		return status.Errorf(codes.Internal, "unknown payload format %d", header[0])
	}
	compressor, err := c.compressor(header[0] == 1)
	if err != nil {
		return err
	}
	if err := c.reserve(int64(size)); err != nil {
		return err
	}
	if timer == nil && size > slowMessage {
		timer = c.hurry()
		defer timer.Stop()
	}
	raw, err := c.transport.Read(int(size))
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return receiveError(err)
	}
	if compressor != nil {
		if raw, err = c.inflate(compressor, raw); err != nil {
			return err
		}
	}
	defer func() { raw.Free() }()
	if raw.Len() > smallMessage {
		if raw, err = c.weigh(raw, m); err != nil {
			return err
		}
	}
	if err := c.codec.Unmarshal(raw, m); err != nil {
		if _, ok := status.FromError(err); ok {
			return err
		}
		return status.Errorf(codes.Internal, "the message cannot be decoded: %v", err)
	}
	c.received = true
	if !c.once {
		return nil
	}
	switch err := c.transport.ReadMessageHeader(header[:]); {
	case errors.Is(err, io.EOF):
		return nil
	case err != nil:
		return receiveError(err)
	}
	return status.Error(codes.Internal, "the call has more than one request message")
}

// hurry returns a timer that ends the call if the message does not arrive in time.
func (c *call) hurry() *time.Timer {
	return time.AfterFunc(c.limits.patience, func() {
		_ = c.transport.WriteStatus(status.New(codes.DeadlineExceeded, "the message did not arrive in time"))
	})
}

// compressor returns the compressor of a message, or nil for an uncompressed one.
func (c *call) compressor(compressed bool) (encoding.Compressor, error) {
	if !compressed {
		return nil, nil
	}
	if !c.limits.inflate {
		return nil, errCompressed
	}
	name := c.transport.RecvCompress()
	if name == "" || name == encoding.Identity {
		return nil, status.Error(codes.Internal, "the message is compressed but names no grpc-encoding")
	}
	compressor := encoding.GetCompressor(name)
	if compressor == nil {
		return nil, status.Errorf(codes.Unimplemented, "grpc-encoding %q is not supported", name)
	}
	return compressor, nil
}

var errCompressed = status.Error(codes.Unimplemented, "compressed messages are for authenticated users")

// inflate decompresses a message. The budget counts the largest possible size until the
// size is known.
func (c *call) inflate(by encoding.Compressor, raw mem.BufferSlice) (mem.BufferSlice, error) {
	defer raw.Free()
	if err := c.reserve(int64(c.message)); err != nil {
		return nil, err
	}
	plain, err := by.Decompress(raw.Reader())
	if err != nil {
		return nil, status.Errorf(codes.Internal, "the message cannot be decompressed: %v", err)
	}
	out, err := mem.ReadAll(io.LimitReader(plain, int64(c.message)+1), mem.DefaultBufferPool())
	if err != nil {
		out.Free()
		return nil, status.Errorf(codes.Internal, "the message cannot be decompressed: %v", err)
	}
	if out.Len() > c.message {
		out.Free()
		return nil, status.Errorf(codes.ResourceExhausted, "decompressed message: at most %d bytes are allowed", c.message)
	}
	return out, c.reserve(int64(out.Len()))
}

// weigh reserves the memory that a message takes once it is decoded.
func (c *call) weigh(raw mem.BufferSlice, m any) (mem.BufferSlice, error) {
	whole := raw.MaterializeToBuffer(mem.DefaultBufferPool())
	raw.Free()
	raw = mem.BufferSlice{whole}
	message, ok := m.(proto.Message)
	if !ok {
		return raw, nil
	}
	n := elements(message.ProtoReflect().Descriptor(), whole.ReadOnlyData(), maxElements)
	if n > maxElements {
		return raw, status.Errorf(codes.ResourceExhausted, "message of more than %d elements", maxElements)
	}
	return raw, c.reserve(int64(whole.Len()) + int64(n)*elementBytes)
}

// reserve sets the call's share of the budget to n bytes.
func (c *call) reserve(n int64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return status.Error(codes.Canceled, "the call has ended")
	}
	c.giveBack()
	if err := c.guard.budget.take(c.caller.Name, c.limits.bytes, n); err != nil {
		return err
	}
	c.reserved = n
	return nil
}

// end returns the call's share of the budget. Goroutines that a handler has left behind and
// that still receive get no more.
func (c *call) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	c.giveBack()
}

func (c *call) giveBack() {
	if c.reserved > 0 {
		c.guard.budget.give(c.caller.Name, c.reserved)
		c.reserved = 0
	}
}

// receiveError converts an error of the transport into a status, except io.EOF.
func receiveError(err error) error {
	if errors.Is(err, io.EOF) {
		return io.EOF
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return status.Error(codes.Internal, "the message ends early")
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	return status.Error(codes.Unavailable, fmt.Sprintf("the connection is lost: %v", err))
}

var _ grpc.ServerStream = (*call)(nil)
