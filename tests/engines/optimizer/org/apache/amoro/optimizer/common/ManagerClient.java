package org.apache.amoro.optimizer.common;

import java.io.BufferedOutputStream;
import java.io.ByteArrayOutputStream;
import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.net.Socket;
import java.net.URI;
import java.nio.charset.StandardCharsets;
import java.util.HashMap;
import java.util.Map;

/**
 * Speaks to the service OptimizeManager of AMS: Thrift's strict binary protocol in frames, one
 * connection for each call. It knows just what the two calls need.
 */
final class ManagerClient {

  /** AMS answered, with an error. */
  static final class Refused extends Exception {
    private static final long serialVersionUID = 1L;
    final int code;

    Refused(int code, Object message) {
      super(code + " " + message);
      this.code = code;
    }
  }

  /** Writes the arguments of a call. */
  private interface Arguments {
    void write(DataOutputStream out) throws IOException;
  }

  private static final int VERSION = 0x80010000;
  private static final int CALL = 1;
  private static final int EXCEPTION = 3;
  private static final int UNDEFINED = -1; // AMS's code for errors without one
  private static final int TIMEOUT_MS = 10_000;

  // Thrift's type numbers.
  private static final int STOP = 0;
  private static final int I32 = 8;
  private static final int I64 = 10;
  private static final int STRING = 11;
  private static final int STRUCT = 12;
  private static final int MAP = 13;

  private final URI uri;

  ManagerClient(String uri) {
    this.uri = URI.create(uri);
    if (!"thrift".equals(this.uri.getScheme()) || this.uri.getPort() < 0) {
      throw new IllegalArgumentException("not thrift://host:port: " + uri);
    }
  }

  /** Registers an optimizer and returns its token. */
  String authenticate(
      String resourceId, int threads, int memoryMb, String group, Map<String, String> properties)
      throws IOException, Refused {
    Object token =
        call(
            "authenticate",
            out -> {
              field(out, STRUCT, 1);
              if (resourceId != null) {
                field(out, STRING, 1);
                string(out, resourceId);
              }
              field(out, I32, 2);
              out.writeInt(threads);
              field(out, I32, 3);
              out.writeInt(memoryMb);
              field(out, I64, 4);
              out.writeLong(System.currentTimeMillis());
              field(out, STRING, 5);
              string(out, group);
              field(out, MAP, 6);
              map(out, properties);
              out.writeByte(STOP);
            });
    return (String) token;
  }

  /** Says that the holder of the token lives. */
  void touch(String token) throws IOException, Refused {
    call(
        "touch",
        out -> {
          field(out, STRING, 1);
          string(out, token);
        });
  }

  private Object call(String method, Arguments arguments) throws IOException, Refused {
    try (Socket socket = new Socket()) {
      socket.setSoTimeout(TIMEOUT_MS);
      socket.connect(new InetSocketAddress(uri.getHost(), uri.getPort()), TIMEOUT_MS);
      ByteArrayOutputStream frame = new ByteArrayOutputStream();
      DataOutputStream out = new DataOutputStream(frame);
      out.writeInt(VERSION | CALL);
      string(out, "OptimizeManager:" + method);
      out.writeInt(0); // sequence number
      arguments.write(out);
      out.writeByte(STOP);
      DataOutputStream wire =
          new DataOutputStream(new BufferedOutputStream(socket.getOutputStream()));
      wire.writeInt(frame.size());
      frame.writeTo(wire);
      wire.flush();
      return answer(new DataInputStream(socket.getInputStream()));
    }
  }

  private static Object answer(DataInputStream in) throws IOException, Refused {
    in.readInt(); // the frame's length
    int type = in.readInt() & 0xff;
    string(in); // the method
    in.readInt(); // sequence number
    Map<Integer, Object> result = struct(in);
    if (type == EXCEPTION) {
      throw new Refused(UNDEFINED, result.get(1));
    }
    if (result.get(1) instanceof Map) {
      Map<?, ?> error = (Map<?, ?>) result.get(1);
      throw new Refused((Integer) error.get(1), error.get(3));
    }
    return result.get(0);
  }

  private static void field(DataOutputStream out, int type, int id) throws IOException {
    out.writeByte(type);
    out.writeShort(id);
  }

  private static void string(DataOutputStream out, String text) throws IOException {
    byte[] bytes = text.getBytes(StandardCharsets.UTF_8);
    out.writeInt(bytes.length);
    out.write(bytes);
  }

  private static void map(DataOutputStream out, Map<String, String> entries) throws IOException {
    out.writeByte(STRING);
    out.writeByte(STRING);
    out.writeInt(entries.size());
    for (Map.Entry<String, String> entry : entries.entrySet()) {
      string(out, entry.getKey());
      string(out, entry.getValue());
    }
  }

  private static String string(DataInputStream in) throws IOException {
    byte[] bytes = new byte[in.readInt()];
    in.readFully(bytes);
    return new String(bytes, StandardCharsets.UTF_8);
  }

  private static Map<Integer, Object> struct(DataInputStream in) throws IOException {
    Map<Integer, Object> fields = new HashMap<>();
    for (int type = in.readByte(); type != STOP; type = in.readByte()) {
      int id = in.readShort();
      fields.put(id, value(in, type));
    }
    return fields;
  }

  private static Object value(DataInputStream in, int type) throws IOException {
    switch (type) {
      case I32:
        return in.readInt();
      case STRING:
        return string(in);
      case STRUCT:
        return struct(in);
      default:
        throw new IOException("no answer of AMS has a field of type " + type);
    }
  }
}
