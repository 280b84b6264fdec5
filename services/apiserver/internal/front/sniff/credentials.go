package sniff

import (
	"net"

	"google.golang.org/grpc/credentials"
)

// Credentials take a sniffed connection as it is: its handshake is done. Others are the
// wrapped ones'.
type Credentials struct {
	credentials.TransportCredentials
}

// ServerHandshake implements credentials.TransportCredentials.
func (c Credentials) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	sniffed, ok := conn.(*Conn)
	if !ok {
		return c.TransportCredentials.ServerHandshake(conn)
	}
	return sniffed, credentials.TLSInfo{
		State:          sniffed.ConnectionState(),
		CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity},
	}, nil
}

// Clone implements credentials.TransportCredentials.
func (c Credentials) Clone() credentials.TransportCredentials {
	return Credentials{c.TransportCredentials.Clone()}
}
