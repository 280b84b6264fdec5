package rest

import (
	"context"
	"net/http"
	"time"

	"github.com/gorilla/websocket"

	"keelson.dev/services/apiserver/internal/front/rest/negotiate"
)

// maxWatcherMessage bounds a message from a watcher, which has no reason to send any, in bytes.
const maxWatcherMessage = 4 << 10

// watchSocket is a watch over WebSocket, for browsers, with a message for each event. The request
// has been authenticated and authorized before.
type watchSocket struct {
	*websocket.Conn
	kind int // of messages
}

// openSocket upgrades the connection. cancel is called when the client disconnects. What the
// client sends is read, so that pings are answered, and discarded. An error has already been sent
// to the client.
func (x *exchange) openSocket(cancel context.CancelFunc) (*watchSocket, error) {
	upgrader := websocket.Upgrader{
		CheckOrigin:  func(*http.Request) bool { return true }, // consoles are served from other origins; there are no cookies
		Subprotocols: websocket.Subprotocols(x.r),              // the first one offered, without the token
	}
	conn, err := upgrader.Upgrade(x, x.r, nil)
	if err != nil {
		return nil, err
	}
	conn.SetReadLimit(maxWatcherMessage)
	go func() {
		defer cancel()
		for {
			if _, _, err := conn.NextReader(); err != nil {
				return
			}
		}
	}()
	s := &watchSocket{Conn: conn, kind: websocket.TextMessage}
	if x.format.Encoding == negotiate.Protobuf {
		s.kind = websocket.BinaryMessage
	}
	return s, nil
}

// send writes one event, which is framed as for a stream.
func (s *watchSocket) send(frame []byte) bool {
	if s.kind == websocket.BinaryMessage {
		frame = frame[4:] // the message has a length of its own
	} else {
		frame = frame[:len(frame)-1]
	}
	return s.SetWriteDeadline(time.Now().Add(stall)) == nil && s.WriteMessage(s.kind, frame) == nil
}

// end sends a close message and closes the connection.
func (s *watchSocket) end() {
	bye := websocket.FormatCloseMessage(websocket.CloseNormalClosure, "")
	_ = s.WriteControl(websocket.CloseMessage, bye, time.Now().Add(time.Second))
	_ = s.Close()
}
