package fleet

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

const (
	streamID = 1
	// window is what the server may send before it is given more: far more than it has to say.
	window = 1 << 30
	// serverWindow is what may be sent before the server gives more: HTTP/2's default.
	serverWindow = 65535
	maxMessage   = 64 << 20
)

// wire is the client's half of one gRPC call on a connection of its own, frame by frame. What is
// sent gathers until flush. Not safe for concurrent use.
type wire struct {
	conn   net.Conn
	framer *http2.Framer
	out    bytes.Buffer
	began  bool

	admitted func() // called when the response's headers have come
	message  []byte // received of a message that has come in part
	frame    []byte // rest of the present frame
	received int    // since the server was given more window
	credit   int    // that may be sent
}

// open writes the call's beginning; its first messages may follow before flush. admitted is called
// when the server has taken the call.
func open(conn net.Conn, authority, path string, admitted func()) (*wire, error) {
	w := &wire{conn: conn, credit: serverWindow, admitted: admitted}
	w.framer = http2.NewFramer(&w.out, conn)
	w.framer.SetReuseFrames()
	w.framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	w.out.WriteString(http2.ClientPreface)
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for _, h := range [][2]string{
		{":method", "POST"}, {":scheme", "https"}, {":path", path}, {":authority", authority}, {"content-type", "application/grpc"}, {"te", "trailers"},
	} {
		if err := enc.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]}); err != nil {
			return nil, err
		}
	}
	return w, errors.Join(
		w.framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: window}, http2.Setting{ID: http2.SettingEnablePush, Val: 0}),
		w.framer.WriteWindowUpdate(0, window),
		w.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: streamID, BlockFragment: block.Bytes(), EndHeaders: true}),
	)
}

// send adds a message to what flush sends.
func (w *wire) send(message []byte) error {
	framed := binary.BigEndian.AppendUint32(make([]byte, 1, 5+len(message)), uint32(len(message)))
	framed = append(framed, message...)
	if w.credit -= len(framed); w.credit < 0 {
		return errors.New("the server gives no window for requests")
	}
	for len(framed) > 0 {
		n := min(len(framed), 16<<10)
		if err := w.framer.WriteData(streamID, false, framed[:n]); err != nil {
			return err
		}
		framed = framed[n:]
	}
	return nil
}

func (w *wire) flush() error {
	if w.out.Len() == 0 {
		return nil
	}
	_, err := w.conn.Write(w.out.Bytes())
	w.out.Reset()
	if w.out.Cap() > 4<<10 {
		w.out = bytes.Buffer{} // the first requests are the longest
		w.refit()
	}
	return err
}

// refit lets go of the framer's buffers.
func (w *wire) refit() {
	headers := w.framer.ReadMetaHeaders
	w.framer = http2.NewFramer(&w.out, w.conn)
	w.framer.SetReuseFrames()
	w.framer.ReadMetaHeaders = headers
}

// next is the next message; it holds until the call after. What has been sent is flushed first.
func (w *wire) next() ([]byte, error) {
	if w.began {
		w.message = nil
	}
	w.began = false
	for {
		if len(w.message) == 0 && len(w.frame) >= 5 { // most messages come in one frame
			n := int(binary.BigEndian.Uint32(w.frame[1:5]))
			if w.frame[0] != 0 || n > maxMessage {
				return nil, fmt.Errorf("message of %d bytes, compression %d", n, w.frame[0])
			}
			if len(w.frame) >= 5+n {
				out := w.frame[5 : 5+n]
				w.frame = w.frame[5+n:]
				return out, nil
			}
		}
		if len(w.frame) > 0 {
			w.message = append(w.message, w.frame...)
			w.frame = nil
		}
		if len(w.message) >= 5 {
			if n := int(binary.BigEndian.Uint32(w.message[1:5])); n <= maxMessage && len(w.message) >= 5+n {
				out, rest := w.message[5:5+n], w.message[5+n:]
				w.frame = bytes.Clone(rest)
				w.began = true
				return out, nil
			}
		}
		if err := w.flush(); err != nil {
			return nil, err
		}
		if err := w.read(); err != nil {
			return nil, err
		}
	}
}

// quiet is how long a connection may say nothing: the server pings when it has nothing to say for half of it.
const quiet = time.Minute

// read takes one frame in.
func (w *wire) read() error {
	if err := w.conn.SetReadDeadline(time.Now().Add(quiet)); err != nil {
		return err
	}
	f, err := w.framer.ReadFrame()
	if err != nil {
		return err
	}
	switch f := f.(type) {
	case *http2.DataFrame:
		w.frame = f.Data()
		w.received += int(f.Header().Length)
		if w.received > window/2 {
			err = errors.Join(w.framer.WriteWindowUpdate(0, uint32(w.received)), w.framer.WriteWindowUpdate(streamID, uint32(w.received)))
			w.received = 0
		}
		if f.StreamEnded() {
			return errors.New("the server ended the stream")
		}
		return err
	case *http2.MetaHeadersFrame:
		for _, h := range f.Fields {
			if h.Name == "grpc-status" && h.Value != "0" {
				return fmt.Errorf("the server ended the stream: %s", f.Fields)
			}
		}
		if f.StreamEnded() {
			return errors.New("the server ended the stream")
		}
		w.admitted()
	case *http2.SettingsFrame:
		if !f.IsAck() {
			return w.framer.WriteSettingsAck()
		}
	case *http2.PingFrame:
		if !f.IsAck() {
			return w.framer.WritePing(true, f.Data)
		}
	case *http2.WindowUpdateFrame:
		if f.StreamID == 0 { // the lesser of the two, as the connection has but one stream
			w.credit += int(f.Increment)
		}
	case *http2.GoAwayFrame:
		return fmt.Errorf("the server goes away: %s %q", f.ErrCode, f.DebugData())
	case *http2.RSTStreamFrame:
		return fmt.Errorf("the server reset the stream: %s", f.ErrCode)
	}
	return nil
}
