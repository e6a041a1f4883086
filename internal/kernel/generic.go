package kernel

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// sizeofGenericHeader is struct genlmsghdr (linux/genetlink.h): command, version
// and two bytes unused.
const sizeofGenericHeader = 4

// genericMessage is a request of a generic netlink family; attributes are its
// body.
func genericMessage(family uint16, command uint8, attributes []byte) message {
	return message{kind: family, body: append([]byte{command, 1, 0, 0}, attributes...)}
}

// genericBody is what follows the header of a family's message.
func genericBody(body []byte) ([]byte, error) {
	if len(body) < sizeofGenericHeader {
		return nil, errMalformed
	}
	return body[sizeofGenericHeader:], nil
}

// genericFamily asks for the number of a generic netlink family. For a family
// that it does not have the kernel loads the module that names it as an alias,
// where there is one; ENOENT means that there is none.
func (c *conn) genericFamily(name string) (uint16, error) {
	request := genericMessage(unix.GENL_ID_CTRL, unix.CTRL_CMD_GETFAMILY, appendString(nil, unix.CTRL_ATTR_FAMILY_NAME, name))
	var number uint16
	err := c.get(request, func(_ uint16, body []byte) error {
		rest, err := genericBody(body)
		if err != nil {
			return err
		}
		a := attributes{rest: rest}
		for a.next() {
			if a.kind == unix.CTRL_ATTR_FAMILY_ID {
				number = a.uint16()
			}
		}
		return a.err
	})
	if err == nil && number == 0 {
		err = errMalformed
	}
	if err != nil {
		return 0, fmt.Errorf("generic netlink family %s: %w", name, err)
	}
	return number, nil
}

// get sends a request that is answered by messages and an acknowledgement.
func (c *conn) get(request message, each func(kind uint16, body []byte) error) error {
	request.flags |= unix.NLM_F_ACK
	_, err := c.list(request, each)
	return err
}
